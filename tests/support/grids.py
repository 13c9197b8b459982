"""Small grids: two recipes on the shared scenes, and finished runs without training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from lmmkit.ablation.planned_runs import GridRun, StageRun
from lmmkit.ablation.results import FinishedRun
from lmmkit.ablation.store import Cost
from lmmkit.evaluate.answers.schema import Answer
from lmmkit.recipe import read_text
from tests.conftest import DIRECT, PLAIN


def write_grid(folder: Path, root: Path, text: str) -> Path:
    """Writes the recipes `plain.yaml` and `direct.yaml`, and a grid with this text and root; returns its path."""
    (folder / "plain.yaml").write_text(PLAIN)
    (folder / "direct.yaml").write_text(DIRECT)
    path = folder / "grid.yaml"
    path.write_text(text.replace("ROOT", str(root)))
    return path


def stage_run(key: str, *, before: StageRun | None = None, steps: int = 6, shape: str = "shape") -> StageRun:
    """Returns a stage of the plain recipe: `pretrain`, or `finetune` after another one."""
    stage = "finetune" if before else "pretrain"
    recipe = read_text(PLAIN)
    return StageRun(key=key, shape=shape, stage=stage, steps=steps, recipe=recipe, before=before, data={})


def finished(
    arm: str, seed: int, results: Mapping[str, Mapping[str, float]], *, root: str = "/data", branch: int = 0,
    equal: str = "steps", folder: Path = Path("/nowhere"), cpu: float | None = 10.0,
) -> FinishedRun:  # fmt: skip
    """Returns a finished run with these values by task and figure."""
    first = stage_run("a" * 12)
    run = GridRun(
        arm=arm, equal=equal, seed=seed, root=root, branch=branch, questions={},
        stages=(first, stage_run(f"{arm}{seed}", before=first)),
    )  # fmt: skip
    figures = {
        task: {name: {"value": value, "n": 4} for name, value in each.items()}
        for task, each in results.items()
    }
    costs = tuple(Cost(steps=6, tokens=100, wall_seconds=4.0, cpu_seconds=cpu) for _ in run.stages)
    return FinishedRun(run, folder, figures, costs)


def write_answers(folder: Path, scores: Sequence[float], *, task: str = "answers", data: str = "d") -> Path:
    """Writes the answers of one task, two questions to a cluster; returns the folder of results."""
    to = folder / task
    to.mkdir(parents=True)
    (to / "answers.json").write_text(json.dumps({"data_sha256": data}))
    lines = [
        Answer(
            task=task, split="", data="d", id=f"q{i}", row=i, condition="own", question="?", images=(),
            cluster=f"image{i // 2}", prompt_sha="p", raw="x", score=score,
            groups={"type": "odd" if i % 2 else "even", "prior": "other" if i > 2 else "usual"},
        ).as_line()
        for i, score in enumerate(scores)
    ]  # fmt: skip
    (to / "answers.jsonl").write_text("".join(lines))
    return folder
