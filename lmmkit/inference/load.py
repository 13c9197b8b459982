"""Opens a model for inference: a run, a model folder of lmmkit, or a public model folder."""

from __future__ import annotations

import sys
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from lmmkit import build
from lmmkit.errors import UserError
from lmmkit.errors.weights import NO_FINISHED_STAGE
from lmmkit.inference.chat_model import ChatModel
from lmmkit.model.teacher_model import TeacherModel
from lmmkit.model.timm_vit import TimmViT
from lmmkit.model.transforms.frozen_bf16 import narrow_matrices
from lmmkit.plan import from_model
from lmmkit.plan.prepare import Prepared, prepare, prepare_bare
from lmmkit.recipe import read_recipe
from lmmkit.runs.run_folder import RunFolder
from lmmkit.weights import model_folder


def load(
    path: str | Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device | None = None,
    trust_files: bool = False, plugins: Literal["inference", "all"] = "inference",
    root: str | Path | None = None, template: str | None = None,
) -> ChatModel:  # fmt: skip
    """Loads a chat model from a run, a model folder written by lmmkit, or a public model folder.

    Args:
        path: RUN (its last finished stage), RUN/model/<stage>, or a llava-hf or decoder folder.
        dtype: dtype of weights and computation.
        device: by default CUDA if available.
        trust_files: whether to run plugins from local files, if one is needed.
        plugins: `inference` loads those whose tokens are in every view, which is all that answering needs;
            `all` also loads the plugins of the terms, to measure them.
        root: the folder that paths of local plugin files are relative to; by default that of the run.
        template: the chat template of a public model. Default: the one that fits its tokenizer, else `vicuna_v1`.

    Raises:
        UserError: no such model, or one that is damaged or in an unknown format.
    """
    device = torch.device(device) if device else build.device_here()
    folder = Path(path)
    if not model_folder.is_ours(folder) and (folder / "config.json").is_file():
        return _load_public(folder, template, dtype, device)
    return _load_ours(find_model_folder(folder), dtype, device, trust_files, plugins == "all", root)


def find_model_folder(path: Path, stage: str | None = None) -> Path:
    """Returns RUN/model/<`stage`, or the last finished stage> for a RUN; returns a model folder unchanged.

    Raises `UserError` if the path is neither, or if the stage, or every stage, has no model yet.
    """
    if (path / "config.json").is_file():
        return path
    run = RunFolder.open(path)
    names = list(read_recipe(run.resolved).stages) if stage is None else [stage]
    done = [name for name in names if (run.model(name) / "config.json").is_file()]
    if not done:
        got = f"no finished stage among {', '.join(names)}"
        raise UserError(NO_FINISHED_STAGE.at(str(run.path / "model"), got=got))
    return run.model(done[-1])


def _load_public(folder: Path, template: str | None, dtype: torch.dtype, device: torch.device) -> ChatModel:
    recipe, source = from_model.recipe_of(folder, template)
    prepared = prepare_bare(recipe, allow_missing_tokenizer=True)
    objective = build.build_objective(
        prepared.recipe, {}, prepared.dims, device, pretrained=prepared.pretrained, dtype=dtype
    )
    return ChatModel.of(
        prepared, objective, next(iter(recipe.stages)), device, image_token=source.image_token
    )


def _without_reference(prepared: Prepared, stage: str) -> Prepared:
    """Leaves out the terms that compare with a reference: the folder has the weights of one model."""
    plan, plans = prepared.plans[stage], {name: p.without_reference() for name, p in prepared.plans.items()}
    for name in sorted(set(plan.weights) - set(plans[stage].weights)):
        print(f"note: {name} is not measured: its reference is not in the model folder", file=sys.stderr)
    return replace(prepared, plans=plans)


def _load_ours(
    folder: Path, dtype: torch.dtype, device: torch.device, trust_files: bool, all_plugins: bool,
    root: str | Path | None,
) -> ChatModel:  # fmt: skip
    config = model_folder.config_of(folder)
    recipe = from_model.recipe_of_ours(folder, config, root)
    if all_plugins:
        prepared = _without_reference(prepare(recipe, trust_files=trust_files, data=[]), config["stage"])
    else:
        inference_plugins = config.get("inference_plugins", ())
        prepared = prepare_bare(
            recipe, inference_plugins=inference_plugins, trust_files=trust_files, allow_missing_tokenizer=True
        )
    components, dims = prepared.instances.components, prepared.dims
    model_folder.check(build.shell(prepared.recipe, components, dims, device), folder)
    objective = build.build_objective(prepared.recipe, components, dims, device, dtype=dtype, drawn=False)
    model_folder.fill(objective, folder)
    objective.teachers = build.open_teachers(prepared, config["stage"], device)
    objective.teacher_models = open_teacher_models(prepared, config["stage"], device)
    return ChatModel.of(prepared, objective, config["stage"], device, image_token=config.get("image_token"))


def open_teacher_models(
    prepared: Prepared, stage: str, device: torch.device, *, cpu: Collection[str] = ()
) -> dict[str, TeacherModel]:
    """Returns the whole models that the terms of a stage compare logits with, by name. Those in `cpu` are not yet on
    `device`."""
    found = {}
    for name in prepared.plans[stage].teacher_models:
        section, recipe = prepared.teachers[name].section, prepared.recipe
        opened = load(recipe.path(section.from_), device="cpu", trust_files=prepared.trust_files)
        lmm, own = opened.objective.lmm, opened.prepared.recipe.model
        asked = replace(recipe, model=own, numerics=replace(recipe.numerics, compute=section.dtype))
        compute = build.compute_dtype(asked, device)
        for part in build.modules(opened.objective).values() if section.dtype == "bfloat16" else ():
            if not isinstance(part, TimmViT):
                narrow_matrices(part.requires_grad_(False), autocast=compute != torch.float32)
        lmm.backend = build.backend(asked, device)  # for its own heads and type
        found[name] = TeacherModel(lmm, compute).to("cpu" if name in cpu else device)
    return found
