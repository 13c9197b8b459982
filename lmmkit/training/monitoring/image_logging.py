"""Images for TensorBoard: those of the terms, and the attention from the response to the image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lmmkit import plugin_calls
from lmmkit.api.ctx import Moment
from lmmkit.data.images import PixelRef, natural
from lmmkit.data.micro_batch.laid_out import SizedSample
from lmmkit.data.micro_batch.packed_images import read_images
from lmmkit.data.packing import Packer
from lmmkit.errors import UserError
from lmmkit.inference.image_attention import image_attention
from lmmkit.objective import Objective
from lmmkit.plan.prepare import Prepared
from lmmkit.training.triggers import Position

HEAT = (1.0, 0.25, 0.0)  # RGB of full attention


class StageImages(NamedTuple):
    """Holds images, [3, X, Y] in 0..1, by "term/name", and texts that belong to some of them."""

    images: dict[str, Tensor]
    texts: dict[str, str]


@torch.no_grad()
def stage_images(prepared: Prepared, objective: Objective, at: Position, device: torch.device) -> StageImages:
    """Returns the terms' images for the first micro-batch of the step that led to `at`.

    Adds the attention of the step's first sample with a readable image, and its turns as text.
    """
    pipeline, step, reader = prepared.pipeline(at.stage), at.stage_step - 1, prepared.reader(at.stage)
    batch = pipeline.step(step)[0].to(device)
    now = Moment(step, step / prepared.steps(at.stage))
    spec, outcome = prepared.dims.image, objective(batch, now)
    out = {}
    for term in (term for term in objective.terms if batch.count[term.name]):
        images = plugin_calls.images(term, outcome.ctxs[term.name])
        out |= {f"{term.name}/{name}": natural(pixels, spec) for name, pixels in images.items()}
    for k in pipeline.positions(step):
        source, epoch, record = pipeline.order.at(k)
        sample, others = pipeline.sources[source][record], pipeline.other_samples(source, step)
        views = pipeline.views.fitting(sample, epoch, Counter(), others)
        main = [m for m in views if m.view.name == "main" and any(span.image for span in m.layout)]
        if main:
            samples = [pipeline.packer.sized(main)]
            try:
                images = read_images(samples, reader)
            except UserError:  # the step used a replacement
                continue
            image, map_XY = response_attention(objective, pipeline.packer, samples[0], images, device)
            shown = {} if map_XY is None else {"attention/response_to_image": overlay(image, map_XY)}
            turns = [f"{turn.role}: {turn.text}" for turn in sample.turns]
            return StageImages(
                out | {"attention/image": image} | shown,
                {"attention/sample": "\n".join([f"{source}: {sample.key}", *turns])},
            )
    return StageImages(out, {})


def response_attention(
    objective: Objective,
    packer: Packer,
    sample: SizedSample,
    images: Mapping[PixelRef, Tensor],
    device: torch.device,
) -> tuple[Tensor, Tensor | None]:
    """Returns the image, [3, X, Y] in 0..1, and the attention from response rows to each patch, [X, Y]; None if the
    rows are not made of fixed patches.

    The attention is the mean over heads, layers and rows, scaled to a maximum of 1.
    """
    found = image_attention(objective, packer, sample, images, device)
    map_XY = None if found.map_XY is None else found.map_XY / found.map_XY.max()
    return natural(found.pixels_CXY, packer.image), map_XY


def overlay(image_CXY: Tensor, map_XY: Tensor) -> Tensor:
    """Returns the image, darkened, with the attention drawn over it."""
    size = image_CXY.shape[1:]
    heat = F.interpolate(map_XY[None, None].float(), size=size, mode="bilinear")[0].clamp(0, 1).cpu()
    colour = torch.tensor(HEAT)[:, None, None]
    return image_CXY.cpu() * (1 - 0.7 * heat) * 0.7 + colour * heat * 0.7
