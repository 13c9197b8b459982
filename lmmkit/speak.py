"""Sample -> text: a trained objective that answers, in memory or from a folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from lmmkit import assemble
from lmmkit.data.chat import response_end
from lmmkit.data.pack import LaidOut, Packer, Tree
from lmmkit.data.pipeline import Views, cut
from lmmkit.errors import Problem, UserError
from lmmkit.model.generate import Chooser, generate, greedy
from lmmkit.objective import Objective
from lmmkit.plan.prepare import Prepared, prepare, prepare_bare
from lmmkit.recipe import read_recipe
from lmmkit.rundir import RunDir
from lmmkit.sample import Image, Sample, Turn, View
from lmmkit.spans import rows
from lmmkit.weights import own

PROMPT_ROWS = 8192  # of one generation batch


@dataclass(frozen=True, kw_only=True)
class Speaker:
    """A model that answers. `stage` is the stage its weights are of."""

    prepared: Prepared
    objective: Objective
    views: Views
    packer: Packer
    stage: str
    device: torch.device

    @classmethod
    def of(cls, prepared: Prepared, objective: Objective, stage: str, device: torch.device) -> Speaker:
        """The speaker of an objective as a stage left it."""
        objective.terms = prepared.plans[stage].terms
        objective.eval()
        return cls(
            prepared=prepared, objective=objective, views=prepared.views(stage),
            packer=prepared.packer(stage), stage=stage, device=device,
        )  # fmt: skip

    def answer(
        self, groups: Sequence[Sequence[View]], *, new: int, choose: Chooser = greedy,
        on_text: Callable[[str], None] | None = None,
    ) -> list[str]:  # fmt: skip
        """The texts that follow these views' prompts, in order.

        Views of one group share their common prefix (many questions on one image); all are of one
        template, whose end of a response ends them. `on_text` is told the text so far; for a single
        view.
        """
        templates = {view.sample.template for group in groups for view in group}
        assert len(templates) == 1, f"views of several templates: {templates}"
        end = response_end(templates.pop(), self.views.tokenizer)
        trees = [self.packer.tree([LaidOut(v, self._fitting(v, new)) for v in group]) for group in groups]
        out: list[str] = []
        for part in cut(trees, PROMPT_ROWS):
            out += self._part(part, new, end, choose, on_text)
        return out

    def _part(self, trees: Sequence[Tree], new: int, end: int, choose: Chooser, on_text) -> list[str]:
        batch, paths = self.packer.pack(trees)
        batch = batch.to(self.device)
        tokens, tokenizer = self.objective.tokens(batch), self.views.tokenizer
        so_far: list[int] = []

        def tell(id_Q: torch.Tensor) -> None:
            so_far.append(int(id_Q[0]))
            if so_far[-1] != end:
                on_text(tokenizer.decode(so_far))

        ids = generate(
            self.objective.lmm, batch, [int(path[-1]) for path in paths], tokens=tokens, new=new,
            eos=end, choose=choose, **({"on_token": tell} if on_text else {}),
        )  # fmt: skip
        return [tokenizer.decode(row).strip() for row in ids]

    def say(
        self, turns: Sequence[Turn], image: str | None = None, *, new: int = 128, choose: Chooser = greedy,
        on_text: Callable[[str], None] | None = None,
    ) -> str:  # fmt: skip
        """The answer to a conversation that ends with a user turn, in the model's own template."""
        speaks = self.prepared.recipe.model.speaks
        images = () if image is None else (Image(str(Path(image).resolve())),)
        sample = Sample(
            key="chat",
            turns=tuple(turns),
            images=images,
            template=speaks.template,
            image_shape=speaks.image_shape,
        )
        return self.answer([[View(sample=sample)]], new=new, choose=choose, on_text=on_text)[0]

    def _fitting(self, view: View, new: int):
        layout = self.views.prompt(view)
        room = self.views.context - new
        if rows(layout) > room:
            got, want = (
                f"a prompt of {rows(layout)} rows",
                f"at most {room} (the context less {new} new tokens)",
            )
            mend = "Ask something shorter, or for fewer new tokens."
            raise UserError(Problem("speak/too-long", f"sample {view.sample.key}", got, want, mend))
        return layout


def load(
    path: str | Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device | None = None,
    trust_files: bool = False, plugins: Literal["spoken", "all"] = "spoken", root: str | Path | None = None,
) -> Speaker:  # fmt: skip
    """The model in a run folder (its last finished stage) or in a model folder lmmkit wrote.

    Args:
        path: RUN, or RUN/model/<stage>.
        dtype: of weights and computation.
        device: by default CUDA where there is one.
        trust_files: run plugins from local files, where one is needed.
        plugins: `spoken` opens those whose tokens stand in every view, which is all that answering
            needs; `all` also those of the terms, to measure them.
        root: where paths of local plugin files start; by default where the run's did.

    Raises:
        UserError: no such model, or one that is damaged or of another make.
    """
    folder = model_folder(Path(path))
    config = own.config_of(folder)
    tokenizer = json.dumps(str((folder / "tokenizer.model").resolve()))  # quoted: it is read as YAML
    recipe = read_recipe(
        folder / "recipe.yaml", root=Path(root or config.get("root", ".")),
        # the folder may lie on another machine than it was trained on
        overrides=[f"model.tokenizer.from={tokenizer}", "speed.attention=auto"],
    )  # fmt: skip
    if plugins == "all":
        prepared = prepare(recipe, trust_files=trust_files, data=[])
    else:
        prepared = prepare_bare(recipe, through=config["speaks_through"], trust_files=trust_files)
    device = torch.device(device) if device else assemble.device_here()
    objective = assemble.build(recipe, prepared.parts.components, prepared.dims, device)
    own.fill(objective, folder)
    objective.to(dtype)
    return Speaker.of(prepared, objective, config["stage"], device)


def model_folder(path: Path, stage: str | None = None) -> Path:
    """RUN -> RUN/model/<its last finished stage, or `stage`>; a model folder as it is."""
    if (path / "config.json").is_file():
        return path
    run = RunDir.open(path)
    names = list(read_recipe(run.resolved).stages) if stage is None else [stage]
    done = [name for name in names if (run.model(name) / "config.json").is_file()]
    if not done:
        got, mend = f"no finished stage of {names}", "Let the run finish: `lmmkit train ... --resume`."
        raise UserError(Problem("model/none", str(run.path / "model"), got, "a model folder", mend))
    return run.model(done[-1])
