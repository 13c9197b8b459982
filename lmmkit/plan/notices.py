"""What `check` and `train` report before a run although it is no problem: data and recipe may not fit."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import torch

from lmmkit import plugin_calls
from lmmkit.api.components import Component, ImageReducer, TokenStrategy
from lmmkit.data.sources.records import Records
from lmmkit.plan.prepare import Prepared
from lmmkit.plugin_calls.source import may_read
from lmmkit.progress import plural


def notices(prepared: Prepared) -> list[str]:
    """Returns a line for each thing that may not be what the user expects."""
    return [
        *_record_notices(prepared),
        *(line for stage in prepared.recipe.stages for line in _unreached(prepared, stage)),
        *_untrained_plugins(prepared),
        *_group_notices(prepared),
        *_reference_notices(prepared),
        *_token_notices(prepared),
        *_tokenizer_notices(prepared),
        *_chat_notices(prepared),
    ]


def _record_notices(prepared: Prepared) -> Iterator[str]:
    """Yields what the records of each source have that is not read, without the keys that a plugin may read."""
    for name, records in sorted(prepared.sources.items()):
        for what, count in records.notes.items():
            key = re.fullmatch("`(.+)` is not read", what)
            components = prepared.instances.components.values()
            if key is None or not any(may_read(each, key[1]) for each in components):
                yield f"data.{name}: {plural(count, 'record')}: {what}"


def _unreached(prepared: Prepared, name: str) -> Iterator[str]:
    """Yields a notice for each trainable part that no record of the stage reaches."""
    stage = prepared.recipe.stages[name]
    trained = stage.train.parts()
    has_image = any(has_images(prepared.sources[source]) for source in stage.data)
    for part in ("vision", "connector"):
        if part in trained and not has_image:
            yield f"stages.{name}.train: {part} is trainable, but no record of this stage has an image"


def _untrained_plugins(prepared: Prepared) -> Iterator[str]:
    """Yields a notice for each plugin that a stage uses although no stage so far has trained its module."""
    for name, stage in prepared.recipe.stages.items():
        if "plugins" in stage.train.parts() or stage.start is not None:
            return
        for instance, component in prepared.instances.components.items():
            if instance not in prepared.plans[name].off and _is_trainable(component, prepared):
                yield (
                    f"stages.{name}.train: plugin {instance} has parameters, which keep their first values: no stage "
                    "so far has `plugins: {}` in `train`"
                )


def _is_trainable(component: Component, prepared: Prepared) -> bool:
    with torch.device("meta"):
        module = plugin_calls.modules(component, prepared.dims)
    return module is not None and any(each.requires_grad for each in module.parameters())


def _group_notices(prepared: Prepared) -> Iterator[str]:
    """Yields a notice for each stage that groups records by their words, and has images of unlike rows."""
    for name, stage in prepared.recipe.stages.items():
        unlike = [
            source for source in stage.data
            if not isinstance(prepared.sources[source].image_fit, str) and has_images(prepared.sources[source])
        ]  # fmt: skip
        if stage.batch.group == "length" and unlike:
            yield (
                f"stages.{name}.batch.group: `length` counts words only; the images of {', '.join(unlike)} take unlike "
                "numbers of rows"
            )


def has_images(records: Records) -> bool:
    """Returns whether any record has an image."""
    return bool((records.words_N >= 0).any())


def _reference_notices(prepared: Prepared) -> Iterator[str]:
    """Yields a notice for each reference that no term of its stage reads."""
    for name, stage in prepared.recipe.stages.items():
        if stage.reference is not None and not prepared.plans[name].reference:
            yield f"stages.{name}.reference: no active term reads a reference, so none is computed"


def _token_notices(prepared: Prepared) -> Iterator[str]:
    """Yields a notice for each plugin of unread tokens, and each image reducer, that no stage has."""
    for name, component in prepared.instances.components.items():
        off = all(name in plan.off for plan in prepared.plans.values())
        if isinstance(component, ImageReducer) and off:
            yield f"plugins.{name}: `model.connector.reduce` does not name it, so images keep all their rows"
        if isinstance(component, TokenStrategy) and component.unread and off:
            yield f"plugins.{name}: no stage names it in `tokens`, so no sequence has its tokens"


def _tokenizer_notices(prepared: Prepared) -> Iterator[str]:
    """Yields a notice for a decoder from an lmmkit folder whose ids mean other tokens."""
    files = prepared.tokenizer.files()
    for origin in prepared.pretrained:
        if "text" in origin.parts and origin.source is None:
            paths = {name: origin.folder / name for name in files}
            if {name: path.read_bytes() for name, path in paths.items() if path.is_file()} != files:
                yield f"model.text.from: {origin.folder} was trained with another tokenizer than `model.tokenizer`"


def _chat_notices(prepared: Prepared) -> Iterator[str]:
    """Yields a notice for each key of `model.chat` that no record of the last stage agrees with."""
    name, stage = list(prepared.recipe.stages.items())[-1]
    chat, sources = prepared.recipe.model.chat, {name: prepared.sources[name] for name in stage.data}
    alike = {name: records for name, records in sources.items() if records.template == chat.template}
    after = f"the sources of the last stage ({name})"
    if not alike:
        yield f"model.chat.template: {chat.template}, but {after} have {_each(sources, 'template')}"
    with_images = {name: records for name, records in (alike or sources).items() if has_images(records)}
    if with_images and all(records.image_fit != chat.image_fit for records in with_images.values()):
        yield f"model.chat.image_fit: {chat.image_fit}, but {after} have {_each(with_images, 'image_fit')}"
    own = sum(records.systems for records in sources.values())
    if chat.system is not None and not own:
        yield f"model.chat.system: no record of {after} has a system prompt"
    elif chat.system is None and own and own == sum(map(len, sources.values())):
        yield f"model.chat.system: not given, but every record of {after} has a system prompt"


def _each(sources: Mapping[str, Records], key: str) -> str:
    return ", ".join(f"{getattr(records, key)} ({name})" for name, records in sorted(sources.items()))
