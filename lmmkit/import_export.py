"""Converts public model folders to lmmkit's model folders, and back."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, assert_never, cast

import torch
from torch import nn

from lmmkit import build
from lmmkit.api.sample import AnyRes
from lmmkit.errors import UserError, raise_all
from lmmkit.errors.weights import (
    ALREADY_LMMKIT,
    CONVERT_EXISTS,
    EXTRA,
    LINK,
    NO_LORA,
    OPTION,
    TRAINED_ENCODER,
    WEIGHTS_ADAPTER,
)
from lmmkit.inference.load import find_model_folder, load
from lmmkit.model.decoder import Decoder
from lmmkit.model.vision import ViT
from lmmkit.objective import Objective
from lmmkit.plan import from_model, shapes
from lmmkit.plan.prepare import Prepared, prepare_bare
from lmmkit.plan.pretrained import MODULES, Pretrained
from lmmkit.progress import working_bytes
from lmmkit.recipe import Recipe, section_mapping, to_mapping
from lmmkit.weights import encoders, lora_checkpoints, model_folder, name_maps
from lmmkit.weights.detect import open_pretrained, peft_source
from lmmkit.weights.end_ids import image_id
from lmmkit.weights.export import llava_folders, peft_adapter
from lmmkit.weights.export.export_model import Exported, export_folder
from lmmkit.weights.left_out import left_out
from lmmkit.weights.pretrained_folder import MERGE, PretrainedFolder
from lmmkit.weights.tensor_reader import Stored

_log = logging.getLogger("lmmkit")
Format = Literal["llava-hf", "llava-next", "llava", "lmmkit", "peft"]
KEPT = ("eos", "pad", "image_token", "family")  # keys of a model folder's config that its weights have
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def import_model(
    source: Path, folder: Path, *, vision: Path | None = None, base: Path | None = None,
    allow_pickle: bool = False, template: str | None = None,
) -> tuple[str, ...]:  # fmt: skip
    """Writes a public model as an lmmkit model folder, without changing a value.

    All weights get one type: the narrowest that changes no value of `source` and `base`.

    Args:
        source: a llava-hf or llava-next model, an original LLaVA model (complete, only its projector, or low-rank
            updates, which are merged), an adapter of `peft`, which is merged into `base`, a decoder, or
            an encoder, which becomes a folder for `model.vision.from`.
        folder: the new folder; it must not exist, or be empty.
        vision: a folder with the encoder, if `source` does not contain it.
        base: a folder with the decoder, if `source` does not contain it.
        allow_pickle: allows reading the weights in `.bin` files.
        template: the chat template, if not the default.

    Returns:
        The parts in the new folder.

    Raises:
        UserError: an unknown architecture, tensors that do not fit, or a folder that is not empty.
    """
    _require_new(folder)
    if model_folder.is_ours(source):
        raise UserError(ALREADY_LMMKIT.at(str(source), got="a folder that lmmkit wrote"))
    if lora_checkpoints.is_adapter(source) and base is None:
        named = lora_checkpoints.base_name(source)
        got = "low-rank updates without a base model" + (f"; their config names {named!r}" if named else "")
        raise UserError(WEIGHTS_ADAPTER.at(str(source), got=got, that_fit="together with their base model"))
    if lora_checkpoints.is_alone(source) and base is not None:
        _refuse(source, {"--vision": vision}, "an adapter")
        return _import_adapter(source, base, folder, template, allow_pickle)
    if (alone := open_pretrained(source, feature_layer=-1, pickled=allow_pickle)).parts() == ("vision",):
        _refuse(source, {"--vision": vision, "--base": base, "--template": template}, "an encoder alone")
        _import_encoder(alone, folder)
        return ("vision",)
    recipe, public_source = from_model.recipe_of(source, template, vision=vision, base=base)
    public_source = replace(public_source, pickled=allow_pickle)
    _refuse(source, {"--vision": vision} if not public_source.connector else {}, "a decoder alone")
    _require_used(public_source, base)
    prepared, objective = _built(recipe, _dtype(public_source, base), allow_pickle)
    with public_source.tensors() as stored:
        if lora_checkpoints.is_adapter(source):
            lora_checkpoints.merge_checkpoint(objective.lmm.decoder, stored, source)
        encoder = objective.lmm.vision
        if vision is not None and (inside := [n for n in stored if n.startswith("vision.")]):
            if not isinstance(encoder, ViT):
                fix = "name the CLIP or SigLIP folder of its encoder as `--vision`"
                raise _extra(source, inside, fix)
            _fill_encoder(encoder, stored, source)
            own = Pretrained(folder=source, parts=("vision",), source=public_source)
            prepared = replace(prepared, pretrained=(*prepared.pretrained, own))
    ids = _ids(public_source, prepared)
    _warn_of_left_out([source, *([base] if base else [])], prepared)
    return _write(folder, prepared, objective, {"kind": public_source.kind, **ids})


def _require_used(source: PretrainedFolder, base: Path | None) -> None:
    """Raises `UserError` for weights in a folder that the model would not have: those of a decoder beside `base`, or
    trained ones beside low-rank updates that are of no encoder and no connector."""
    with source.tensors() as stored:
        names = list(stored)
    if not lora_checkpoints.is_adapter(source.folder):
        decoder = any(name.startswith("text.") for name in names)
        _refuse(source.folder, {"--base": base} if decoder else {}, "a model that has its own decoder")
    elif unknown := lora_checkpoints.unknown_names(names, ("connector.", "vision.")):
        raise _extra(source.folder, unknown, "merge it into its base with LLaVA's own script")


def _extra(folder: Path, names: Sequence[str], fix: str) -> UserError:
    return UserError(EXTRA.at(str(folder), got=f"{len(names)} extra, such as {min(names)}", fix=fix))


def _warn_of_left_out(folders: Sequence[Path], prepared: Prepared) -> None:
    """Warns of settings of public folders that the model and its exports do not have."""
    for folder in folders:
        if not model_folder.is_ours(folder):
            for notice in left_out(open_pretrained(folder), prepared.recipe.model.chat.template):
                _log.warning("%s", notice)


def _fill_encoder(encoder: ViT, stored: Mapping[str, Stored], source: Path) -> None:
    """Copies the encoder that `source` contains into the one from `--vision`, and warns if they differ."""
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    fix = "name the encoder that the model was trained with"
    name_maps.fill_public(
        encoder,
        encoders.VIT,
        stored,
        prefix="vision.",
        spare=r"^post_layernorm|^encoder\.layers|ids$",
        fix=fix,
    )
    if not all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items()):
        _log.warning("%s: it contains an encoder with other weights than --vision; its own are used", source)


def _built(recipe: Recipe, dtype: torch.dtype, pickled: bool) -> tuple[Prepared, Objective]:
    prepared = prepare_bare(recipe, allow_missing_tokenizer=True, pickled=pickled)
    objective = build.build_objective(
        prepared.recipe, {}, prepared.dims, torch.device("cpu"), pretrained=prepared.pretrained, dtype=dtype
    )
    return prepared, objective


def _write(
    folder: Path, prepared: Prepared, objective: Objective, more: Mapping[str, object]
) -> tuple[str, ...]:
    """Writes the model folder; `more`: further keys of its config. Returns its parts."""
    passthrough, prefixes = {}, {}
    for origin in prepared.pretrained:
        passthrough |= origin.passthrough(build.modules(objective))
        hub = origin.source and origin.source.kind in ("llava-hf", "llava-next")
        prefixes |= origin.source.prefixes() if origin.source and hub else {}
    config = {
        "stage": from_model.IMPORTED_STAGE, "step": 0, "inference_plugins": [], "plugins": {},
        "model": to_mapping(prepared.recipe)["model"], "prefixes": prefixes, **more,
    }  # fmt: skip
    tokenizer = prepared.tokenizer if prepared.tokenizer.size else None
    model_folder.write(
        folder,
        model_folder.unique_tensors(objective),
        config=config,
        recipe=None,
        tokenizer=tokenizer,
        passthrough=passthrough,
    )
    return tuple(part for part in MODULES if getattr(prepared.recipe.model, part) is not None)


def _import_adapter(
    source: Path, base: Path, folder: Path, template: str | None, pickled: bool
) -> tuple[str, ...]:
    """Writes the model of `base` with an adapter merged into it, and with the adapter's connector."""
    adapter = peft_source(source, connector=True, pickled=pickled)
    prepared, objective = _built(
        from_model.recipe_of_base(base, template),
        torch.promote_types(adapter.stored_dtype(), _stored_dtype(base, pickled)), pickled,
    )  # fmt: skip
    with adapter.tensors() as stored:
        parts = ("connector.",) if prepared.recipe.model.connector else ()
        if unknown := lora_checkpoints.unknown_names(stored, parts):
            raise _extra(source, unknown, MERGE)
        lora_checkpoints.merge_checkpoint(objective.lmm.decoder, stored, source)
        if any(name.startswith("connector.") for name in stored):
            adapter.fill("connector", objective.lmm.connector, stored)
    if model_folder.is_ours(base):
        known = {key: value for key, value in model_folder.config_of(base).items() if key in KEPT}
    else:
        known = _ids(open_pretrained(base), prepared)
    _warn_of_left_out([base], prepared)
    return _write(folder, prepared, objective, {"kind": adapter.kind, **known})


def _dtype(source: PretrainedFolder, base: Path | None) -> torch.dtype:
    """Returns the type of the imported weights; for low-rank updates the type that their config names."""
    if lora_checkpoints.is_adapter(source.folder):
        return DTYPES.get(source.dtype, torch.float32)
    if base is None:
        return source.stored_dtype()
    return torch.promote_types(source.stored_dtype(), _stored_dtype(base, source.pickled))


def _stored_dtype(folder: Path, pickled: bool) -> torch.dtype:
    """Returns the narrowest type of the weights in a public folder or in lmmkit's."""
    if model_folder.is_ours(folder):
        return model_folder.dtype_of(folder)
    return open_pretrained(folder, pickled=pickled).stored_dtype()


def _refuse(where: Path, options: Mapping[str, object], what: str) -> None:
    """Raises `UserError` for options that do not apply to `what`."""
    given = ", ".join(name for name, value in options.items() if value is not None)
    if given:
        raise UserError(OPTION.at(str(where), got=f"{given} with {what}", what=what, options=given))


def _import_encoder(source: PretrainedFolder, folder: Path) -> None:
    """Writes an encoder as a model folder, with all blocks, so that a recipe can choose any layer."""
    assert source.vision is not None
    section = shapes.resolved_encoder(source.vision.section, str(source.folder))
    origin = Pretrained(folder=source.folder, parts=("vision",), source=source)
    module = build.build_encoder(origin, section, source.stored_dtype())
    config = {
        "stage": from_model.IMPORTED_STAGE, "step": 0, "inference_plugins": [], "plugins": {}, "kind": source.kind,
        "model": {"vision": section_mapping(section)}, "image_fit": source.vision.image_fit,
    }  # fmt: skip
    named = nn.ModuleDict({"lmm": nn.ModuleDict({"vision": module})})
    passthrough = origin.passthrough({"vision": module})
    model_folder.write(
        folder,
        model_folder.unique_tensors(named),
        config=config,
        recipe=None,
        tokenizer=None,
        passthrough=passthrough,
    )


def _ids(source: PretrainedFolder, prepared: Prepared) -> dict[str, object]:
    """Returns the ids that the folders name, and the decoder's family, as keys of a model folder's config."""
    ends, image = prepared.end_ids, source.image_token
    if image is not None and prepared.tokenizer.size:
        image = image_id(prepared.tokenizer, image, ends)
        if image != source.image_token:
            _log.warning("%s: the tokenizer uses id %d, its image token, for something else; it is %d now",
                         source.folder, source.image_token, image)  # fmt: skip
    found: dict[str, object] = {"eos": list(ends.eos), "pad": ends.pad, "image_token": image}
    found["family"] = source.text.family if source.text else None
    return {name: value for name, value in found.items() if value is not None}


def export_model(
    path: Path, folder: Path, kind: Format, *, dtype: torch.dtype | None = None, base: str | None = None
) -> None:
    """Writes the last model of a run, or an lmmkit model folder, in a public format.

    Plugins that inference does not need are left out; a plugin that it needs is a problem.
    `base` is for `peft`: the name of the adapter's base model in the written file.

    Raises:
        UserError: a model that the format cannot express, or a folder that is not empty.
    """
    source = find_model_folder(path)
    llava_folders.require_ours(source)
    _refuse(folder, {"--base": base} if kind != "peft" else {}, f"--format {kind}")
    _refuse(folder, {"--dtype": dtype} if kind in ("lmmkit", "peft") else {}, f"--format {kind}")
    match kind:
        case "lmmkit":
            _require_new(folder)
            _require_no_links(source)
            with export_folder(folder) as aside:
                shutil.copytree(source, aside, dirs_exist_ok=True, copy_function=_copy)
        case "peft":
            _require_new(folder)
            peft_adapter.write(adapter_of(source, folder, base)[0], folder)
        case "llava-hf" | "llava-next" | "llava":
            raise_all(llava_folders.of_plugins(model_folder.config_of(source), folder, kind))
            chat_model = load(source, device="cpu", dtype=dtype or model_folder.dtype_of(source))
            model = _exported(source, chat_model.prepared, build.modules(chat_model.objective))
            llava_folders.write(model, folder, kind, dtype=dtype)
        case _:
            assert_never(kind)


def _copy(source: str, target: str) -> str:
    """Copies a file, and shows how far it is."""
    done = 0
    with (
        open(source, "rb") as old, open(target, "wb") as new,
        working_bytes(f"copying {Path(source).name}", Path(source).stat().st_size) as move,
    ):  # fmt: skip
        while block := old.read(8 << 20):
            new.write(block)
            move(done := done + len(block))
    shutil.copystat(source, target)
    return target


def _exported(source: Path, prepared: Prepared, parts: Mapping[str, nn.Module]) -> Exported:
    chat = prepared.recipe.model.chat
    return Exported(
        vision=parts["vision"], connector=parts["connector"], text=cast(Decoder, parts["text"]),
        config=model_folder.config_of(source), tokenizer=prepared.tokenizer,
        passthrough=model_folder.carried_of(source), image_fit=chat.image_fit, template=chat.template,
        system=chat.system or "",
    )  # fmt: skip


def adapter_of(
    source: Path, folder: Path, base: str | None = None
) -> tuple[peft_adapter.PeftAdapter, Decoder]:
    """Returns the low-rank updates of the source's stage, to be written to `folder`, and their decoder without
    values: its full weights are not read."""
    config, updates = model_folder.config_of(source), model_folder.updates_of(source)
    recipe = from_model.recipe_of_ours(source, config, None)
    stage = recipe.stages[config["stage"]].train
    asked = stage.text.lora if stage.text else None
    if not updates or asked is None:
        got = f"stage `{config['stage']}`, which trained without low-rank updates"
        raise UserError(NO_LORA.at(str(source), got=got))
    prepared = prepare_bare(replace(recipe, plugins={}), allow_missing_tokenizer=True)
    objective = build.shell(prepared.recipe, {}, prepared.dims, torch.device("cpu"))
    model = _exported(source, prepared, build.modules(objective))
    found = (llava_folders.problems if model.has_vision else llava_folders.learned_tokens)(
        model, folder, "llava-next" if isinstance(model.image_fit, AnyRes) else "llava-hf"
    )
    if stage.vision is not None:
        found.append(TRAINED_ENCODER.at(str(source), got="an encoder that was trained too"))
    raise_all(found)
    connector = {}
    if stage.connector is not None:
        at = f"{MODULES['connector']}."
        names = {at + name for name in model_folder.unique_tensors(model.connector)}
        connector = {n.removeprefix(at): t for n, t in model_folder.tensors(source, names).items()}
    kept = peft_adapter.PeftAdapter(
        updates=updates, connector=connector, alpha=asked.alpha, dropout=asked.dropout,
        has_vision=model.has_vision, base=base,
    )  # fmt: skip
    return kept, model.text


def _require_no_links(folder: Path) -> None:
    """Raises `UserError` for links: a copy must not contain what a link in the folder points to."""
    raise_all(LINK.at(str(path), got="a link") for path in sorted(folder.rglob("*")) if path.is_symlink())


def _require_new(folder: Path) -> None:
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        got = "a file, a link or a folder that is not empty"
        raise UserError(CONVERT_EXISTS.at(str(folder), got=got))
