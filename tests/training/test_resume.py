"""What may change when a run goes on: every key has a class, and the class decides."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

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
    monkeypatch.setattr(resume, "identity", lambda *now: same)  # it reads all data
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


SHORT = ("stages.pretrain.length.steps=1", "stages.finetune.length.steps=1", "output.images_every=0")
APART = Path(__file__).parents[1] / "support" / "sound_plugins" / "micro_batch.py"


def of_micro_batches(weight: str = "0.1") -> str:
    """Returns a recipe with a term that does not add up in its second stage."""
    head, _, tail = PLAIN.rpartition("{next_token: 1.0}")
    text = f"{head}{{next_token: 1.0, apart: {weight}}}{tail}"
    return text.replace("stages:", f"plugins:\n  apart: {{use: '{APART}:mistake'}}\nstages:", 1)


def problems_at_resume(run, recipe, ranks: int = 1) -> list[tuple[str, str, str]]:
    prepared = prepare(recipe, trust_files=True)
    try:
        resume.changes(run, prepared, accept_data=True, ranks=ranks)
    except UserError as error:
        return [(p.code, p.where.split(": ")[-1], p.hint) for p in error.problems]
    return []


CUTS = ["speed.tokens=2000", "speed.share_prefix=false", "parallel.exchange=micro_batch", "parallel.shard=2"]


def test_where_a_term_does_not_add_up_another_cut_is_refused(tiny, tmp_path, capsys):
    run = train(tiny(*SHORT, text=of_micro_batches()), out=tmp_path / "run", trust_files=True).run
    kept = json.loads(run.run_json.read_text())
    assert kept["not_additive"] == {"finetune": ["apart"]} and kept["ranks"] == 1
    for cut in CUTS:
        ((code, key, hint),) = problems_at_resume(run, tiny(*SHORT, cut, text=of_micro_batches()))
        assert (code, key) == ("resume/other-cut", cut.split("=")[0]) and "`apart`" in hint and key in hint
    ((code, key, hint),) = problems_at_resume(run, tiny(*SHORT, text=of_micro_batches()), ranks=2)
    assert (code, key) == ("resume/other-ranks", "ranks") and "`apart`" in hint and "torchrun" in hint
    for free in ("speed.workers=1", "output.keep=3", "speed.attention=eager"):
        assert problems_at_resume(run, tiny(*SHORT, free, text=of_micro_batches())) == []
    with pytest.raises(UserError, match="resume/other-cut"):
        train(tiny(*SHORT, CUTS[0], text=of_micro_batches()), out=run.path, resume=True, trust_files=True)
    capsys.readouterr()


def test_the_cut_is_free_where_all_terms_with_a_weight_add_up(tiny, tmp_path):
    watched = of_micro_batches("{weight: 0, watch: true}")
    run = train(tiny(*SHORT, text=watched), out=tmp_path / "run", trust_files=True).run
    assert json.loads(run.run_json.read_text())["not_additive"] == {}
    assert problems_at_resume(run, tiny(*SHORT, *CUTS[:2], text=watched), ranks=3) == []
    changed = resume.changes(
        run, prepare(tiny(*SHORT, text=watched), trust_files=True), accept_data=False, ranks=3
    )
    assert [(c.key, c.kind, c.before, c.now) for c in changed] == [("ranks", "speed", "1", "3")]


def test_a_run_of_an_earlier_version_did_not_write_the_ranks(tiny, tmp_path):
    run = RunFolder.create(tmp_path / "run", resume=False)
    prepared = prepare(tiny(text=PLAIN))
    resume.begin(run, prepared, None)
    kept = json.loads(run.run_json.read_text())
    run.run_json.write_text(json.dumps({k: v for k, v in kept.items() if k not in ("ranks", "not_additive")}))
    assert resume.changes(run, prepared, accept_data=False, ranks=4) == [] and run.cut() == ((), None)


@pytest.mark.parametrize("given", [5, [1], {"finetune": 3}, {"finetune": [["x"]]}])
def test_a_damaged_list_of_terms_is_a_change(tiny, tmp_path, given):
    run = RunFolder.create(tmp_path / "run", resume=False)
    recipe = tiny(text=PLAIN)
    resume.begin(run, prepare(recipe), None)
    kept = json.loads(run.run_json.read_text())
    run.run_json.write_text(json.dumps(kept | {"not_additive": given, "ranks": "x"}))
    codes = {code for code, _, _ in problems_at_resume(run, recipe)}
    assert codes == {"resume/changed", "resume/other-ranks"} and run.cut()[1] is None


@pytest.mark.parametrize("text", [PRETRAINED, SCRATCH])
def test_no_key_of_a_full_example_lacks_a_class(text):
    for path, _ in leaves(to_mapping(read_text(text))):
        section_class(".".join(path))
