"""Prepares an objective for a stage: its weights at the start, what is trained, and how layers are computed."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from lmmkit.model.transforms import lora
from lmmkit.model.transforms.compiled import set_compiled
from lmmkit.model.transforms.recompute import set_recomputed
from lmmkit.model.vision import ViT
from lmmkit.objective import Objective
from lmmkit.plan.stage_plan import StagePlan
from lmmkit.recipe import Speed, Stage
from lmmkit.weights import model_folder


def start(objective: Objective, folder: Path) -> tuple[str, ...]:
    """Fills the model from a folder written by lmmkit. Plugin tensors that it lacks keep their initial draw.

    Returns the names of those tensors.
    """
    model_folder.fill(objective, folder, prefixes=("lmm.",))
    return model_folder.fill(objective, folder, prefixes=("plugins.",), strict=False)


def set_stage(
    objective: Objective, plan: StagePlan, stage: Stage, *, seed: int
) -> dict[str, list[nn.Parameter]]:
    """Switches the objective to a stage: sets its terms, and returns the trainable parameters by part.

    The LoRA updates of the previous stage are merged, and those of this stage are attached.
    """
    objective.terms, objective.weighers = plan.terms, plan.weighers
    lora.merge(objective.lmm.decoder)
    objective.zero_grad(set_to_none=True)  # a part that becomes frozen must not keep a gradient
    objective.requires_grad_(False)
    parts = {
        "vision": [objective.lmm.vision],
        "connector": [objective.lmm.connector],
        "text": [objective.lmm.decoder],
        "plugins": [objective.plugins[n] for n in sorted(plan.active) if n in objective.plugins],
    }
    always_frozen = {id(objective.plugins.get_parameter(name)) for name in objective.always_frozen}
    trainable = {}
    asked = stage.train.text.lora if stage.train.text else None
    for name in stage.train.parts():
        if name == "text" and asked is not None:
            trainable[name] = lora.attach(
                objective.lmm.decoder, r=asked.r, alpha=asked.alpha, dropout=asked.dropout,
                targets=asked.targets or lora.TARGETS, seed=seed,
            )  # fmt: skip
            continue
        found = dict.fromkeys(p for module in parts[name] for p in module.parameters())
        trainable[name] = [parameter for parameter in found if id(parameter) not in always_frozen]
        for parameter in trainable[name]:
            parameter.requires_grad_(True)
    return trainable


def set_layers(objective: Objective, speed: Speed) -> None:
    """Compiles layers before and after their attention, if asked for (never timm's), and recomputes the asked
    number of decoder blocks in the backward pass instead of saving their activations."""
    blocks, vision = objective.lmm.decoder.blocks, objective.lmm.vision
    set_compiled([*blocks, *(vision.blocks if isinstance(vision, ViT) else ())], speed.compile)
    set_recomputed(blocks, speed.recomputed(len(blocks)))
