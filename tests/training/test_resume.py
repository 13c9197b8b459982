"""What may change when a run goes on: every key has a class, and the class decides."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from lmmkit.errors import UserError
from lmmkit.plan.prepare import prepare
from lmmkit.recipe import Recipe, diff, from_mapping, read_text, section_class, to_mapping
from lmmkit.runs.files import read_json, read_jsonl
from lmmkit.runs.run_folder import RunFolder
from lmmkit.runs.sessions import sessions_in
from lmmkit.training import resume
from lmmkit.training.run import train
from tests.conftest import DIRECT, PLAIN
from tests.support.example_recipes import PRETRAINED, SCRATCH
from tests.test_docs import keys

KEYS = sorted({key for key, _ in keys(Recipe)})


@pytest.mark.parametrize("key", KEYS)
def test_every_recipe_key_has_a_class(key):
    assert section_class(key) in ("mathematics", "data", "speed", "output")


def test_a_key_without_a_class_is_an_error():
    for key in ("optimism", "stages.only.hope", ""):
        with pytest.raises(KeyError):
            section_class(key)


@pytest.mark.parametrize(
    ("key", "kind"),
    [("seed", "mathematics"), ("model.text.width", "mathematics"), ("plugins.x.grid", "mathematics"), ("numerics.compute", "mathematics"),
     ("stages.a.optim.lr", "mathematics"), ("stages.a.batch.samples", "mathematics"), ("stages.a.losses.next_token.weight", "mathematics"),
     ("stages.a.data.captions", "data"), ("stages.a.start", "data"), ("data.captions.records", "data"),
     ("stages.a.validate.every", "output"), ("evaluate.tasks.x.kind", "output"), ("output.keep", "output"),
     ("speed.tokens", "speed"), ("speed.workers", "speed")],
)  # fmt: skip
def test_classes_are_those_one_would_expect(key, kind):
    assert section_class(key) == kind


def other(value):
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return f"{value}x" if isinstance(value, str) else None


@pytest.fixture(scope="module")
def begun(scenes, tmp_path_factory):
    """Returns a run that has begun and gone no further, and what was prepared for it."""
    prepared = prepare(read_text(DIRECT, root=scenes))
    run = RunFolder.create(tmp_path_factory.mktemp("resume") / "run", resume=False)
    resume.begin(run, prepared, None)
    return run, prepared


def leaves(mapping, at=()):
    for key, value in mapping.items():
        if isinstance(value, dict):
            yield from leaves(value, (*at, key))
        else:
            yield (*at, key), value


def test_a_change_of_any_key_is_refused_or_reported_by_its_class(begun, monkeypatch):
    """Compares all keys of a full recipe as a resume does, which needs no run."""
    run, prepared = begun
    same = resume.identity(prepared)
    monkeypatch.setattr(resume, "identity", lambda now: same)  # it reads all data
    mapping = to_mapping(prepared.recipe)
    seen = {}
    for path, value in leaves(mapping):
        changed = json.loads(json.dumps(mapping))
        at = changed
        for name in path[:-1]:
            at = at[name]
        at[path[-1]] = other(value)
        if at[path[-1]] is None:
            continue
        try:
            recipe = from_mapping(changed, root=prepared.recipe.root)
        except UserError:
            continue  # no recipe can say that, so none can be resumed with
        key = ".".join(path)
        kinds = {d.section_class for d in diff(prepared.recipe, recipe)}
        assert kinds == {section_class(key)}, key
        now = replace(prepared, recipe=recipe)
        allowed, accepted = (_refused(run, now, accept) for accept in (False, True))
        (kind,) = kinds
        seen[kind] = seen.get(kind, 0) + 1
        assert bool(allowed) is (kind in ("mathematics", "data")), key
        assert bool(accepted) is (kind == "mathematics"), key
        if allowed:
            assert key in allowed[0].where and (resume.ACCEPT in allowed[0].hint) is (kind == "data")
    assert seen["mathematics"] > 30 and min(seen[k] for k in ("speed", "output")) > 3, seen


def _refused(run, prepared, accept):
    try:
        resume.changes(run, prepared, accept_data=accept)
    except UserError as error:
        return error.problems
    return ()


def test_what_changed_is_reported_kept_and_no_longer_a_change(tiny, tmp_path, capsys):
    short = ("stages.pretrain.length.steps=1", "stages.finetune.length.steps=1", "output.images_every=0")
    run = train(tiny(*short, text=PLAIN), out=tmp_path / "run").run
    capsys.readouterr()
    train(tiny(*short, "output.keep=3", "speed.tokens=4000", text=PLAIN), out=run.path, resume=True)
    err = capsys.readouterr().err
    assert "output.keep (output): 2 -> 3" in err and "speed.tokens (speed): 4096 -> 4000" in err
    train(tiny(*short, "output.keep=3", "speed.tokens=4000", text=PLAIN), out=run.path, resume=True)
    assert "changed since" not in capsys.readouterr().err
    first, second = read_jsonl(run.resumes)
    assert [c["key"] for c in first["changes"]] == ["output.keep", "speed.tokens"] and first["step"] == 2
    assert second["changes"] == [] and second["versions"]["torch"]
    assert "keep: 3" in run.resolved.read_text()
    found = read_json(run.run_json)
    sessions = sessions_in(found)
    assert len(sessions) == 3 and all(each["ended"] and each["cpu_seconds"] > 0 for each in sessions)
    assert sessions[0]["threads"] == torch.get_num_threads() and sessions[0]["device"] == "cpu"
    tensors = load_file(run.model("finetune") / "model.safetensors")
    assert found["parameters"] == sum(tensor.numel() for tensor in tensors.values())
    vision = sum(tensor.numel() for name, tensor in tensors.items() if "vision" in name)
    assert found["trained"] == {"pretrain": found["parameters"], "finetune": found["parameters"] - vision}


def test_other_data_goes_on_where_it_is_accepted(scenes, tmp_path, capsys):
    shutil.copytree(scenes, tmp_path / "data")
    text = PLAIN.replace("{steps: 6}", "{steps: 1}").replace("images_every: 6", "images_every: 0")
    recipe = read_text(text, root=tmp_path / "data")
    run = train(recipe, out=tmp_path / "run").run
    records = tmp_path / "data" / "finetune.json"
    records.write_text(records.read_text().replace("red", "tan"))
    with pytest.raises(UserError, match="resume/changed") as error:
        train(recipe, out=run.path, resume=True)
    assert "--accept-data-change" in str(error.value)
    with pytest.raises(UserError, match="train/only-with-resume"):
        train(recipe, out=tmp_path / "new", accept_data=True)
    train(recipe, out=run.path, resume=True, accept_data=True)
    (line,) = read_jsonl(run.resumes)
    assert [(c["key"], c["class"]) for c in line["changes"]] == [("data.questions.records", "data")]
    train(recipe, out=run.path, resume=True)  # what was accepted is the run's data from then on


def test_a_held_out_source_may_come_and_go(tiny, tmp_path):
    short = ("stages.pretrain.length.steps=1", "stages.finetune.length.steps=1", "output.images_every=0")
    run = train(tiny(*short, text=PLAIN), out=tmp_path / "run").run
    asked = "stages.finetune.validate={every: 1, data: heldout, samples: 2}"
    train(tiny(*short, asked, text=PLAIN), out=run.path, resume=True)
    assert [line["step"] for line in run.read_metrics() if "val/loss" in line] == [2]


@pytest.mark.parametrize("text", [PRETRAINED, SCRATCH])
def test_no_key_of_a_full_example_lacks_a_class(text):
    for path, _ in leaves(to_mapping(read_text(text))):
        section_class(".".join(path))
