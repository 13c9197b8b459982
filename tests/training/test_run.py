"""Whole runs, tiny: what is bit-identical, what resumes, what is refused."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import re
import shutil
import signal
import time
import weakref

import pytest
import torch

from lmmkit.errors import MachineError, UserError
from lmmkit.recipe import read_text
from lmmkit.runs.run_folder import RunFolder
from lmmkit.training import run as run_module
from lmmkit.training import stage_loop
from lmmkit.training.checkpoint import read
from lmmkit.training.run import train
from lmmkit.training.step import run_step
from lmmkit.training.triggers import Every, Position
from tests.conftest import DIRECT, PLAIN

TIMES = ("seconds", "tokens_per_second")


def figures(run: RunFolder) -> list[dict]:
    """Returns the metrics without those that depend on the clock."""
    return [{k: v for k, v in line.items() if k not in TIMES} for line in run.read_metrics()]


@pytest.fixture(scope="module")
def finished(scenes, tmp_path_factory):
    """One uninterrupted Direct run of twelve steps, and its recipe."""
    recipe = read_text(DIRECT, name="tiny.yaml", root=scenes)
    return recipe, train(recipe, out=tmp_path_factory.mktemp("run") / "whole").run


def test_a_run_leaves_the_files_of_its_contract(finished):
    recipe, run = finished
    names = {p.name for p in run.path.iterdir()}
    assert names >= {
        "recipe.yaml", "recipe.resolved.yaml", "plan.txt", "run.json", "lock", "metrics.jsonl", "tb", "checkpoints", "model",
    }  # fmt: skip
    lines = run.read_metrics()
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert {"stage", "loss", "terms/next_token", "lr", "grad_norm", "tokens_per_second", "seconds"} <= lines[
        0
    ].keys()
    assert lines[0]["lr"] == 0.0, "update 1 has learning rate 0"
    assert lines[0]["chance/image_order"] == pytest.approx(1.6094, abs=1e-4)
    for stage in recipe.stages:
        assert {p.name for p in run.model(stage).iterdir()} == {
            "config.json", "model.safetensors", "recipe.yaml", "tokenizer.model",
        }  # fmt: skip
    assert len(list(run.checkpoints.glob("step-*"))) == 2


def test_tensorboard_has_scalars_and_images(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(finished[1].tb), size_guidance={"images": 0})
    board.Reload()
    tags = board.Tags()
    assert {"terms/next_token", "terms/image_order", "chance/image_order", "loss"} <= set(tags["scalars"])
    assert {"image_order/shuffled", "image_order/restored", "attention/response_to_image"} <= set(
        tags["images"]
    )


def test_tensorboard_has_stages_texts_and_a_chart_of_each_term_with_its_chance(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.custom_scalar import layout_pb2

    recipe, run = finished
    board = EventAccumulator(str(run.tb), size_guidance={"tensors": 0, "scalars": 0})
    board.Reload()
    stages = [line["stage"] for line in run.read_metrics()]
    assert [list(recipe.stages)[int(point.value)] for point in board.Scalars("stage")] == stages
    (text,) = {
        e.tensor_proto.string_val[0].decode() for e in board.Tensors("attention/sample/text_summary")[:1]
    }
    assert (
        "user:" in text
        and "assistant:" in text
        and all(line.startswith("    ") for line in text.splitlines())
    )
    layout = layout_pb2.Layout()
    layout.ParseFromString(board.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    shown = {
        chart.title: {tag for tag in board.Tags()["scalars"] if re.search(chart.multiline.tag[0], tag)}
        for chart in layout.category[0].chart
    }
    assert shown["image_order"] == {"terms/image_order", "chance/image_order"}
    assert {"next_token", "image_order", "text_order", "guided_loss"} == set(shown)


def test_plugins_of_weight_zero_leave_plain_llava_bit_for_bit(tiny, tmp_path):
    long = [f"stages.{stage}.length.steps=10" for stage in ("pretrain", "finetune")]
    off = [
        "stages.pretrain.losses={next_token: 1.0, image_order: 0, text_order: 0, guided_loss: 0}",
        "stages.finetune.losses={next_token: 1.0, image_order: 0.0, guided_loss: 0.0}",
    ]
    plain = train(tiny(*long, text=PLAIN), out=tmp_path / "plain").run.read_metrics()
    zero = train(tiny(*long, *off), out=tmp_path / "zero").run.read_metrics()
    assert len(plain) == 20
    assert [line["loss"].hex() for line in plain] == [line["loss"].hex() for line in zero]
    assert [line["tokens"] for line in plain] == [line["tokens"] for line in zero]


def test_a_watched_term_is_measured_and_moves_nothing_but_rounding(tiny, tmp_path):
    watched = [
        "stages.pretrain.losses={next_token: 1.0, guided_loss: {weight: 0, watch: true}, image_order: {weight: 0, watch: true}, text_order: 0}",
        "stages.finetune.losses={next_token: 1.0}",
    ]
    plain = train(tiny(text=PLAIN), out=tmp_path / "plain").run.read_metrics()
    seen = train(tiny(*watched), out=tmp_path / "watched").run.read_metrics()
    assert 0 < seen[0]["terms/guided_loss"] < 1 and seen[0]["terms/image_order"] > 0
    for a, b in zip(plain, seen, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)


def test_one_micro_batch_equals_many(tiny, tmp_path):
    runs = [
        train(tiny(f"speed.tokens={n}"), out=tmp_path / str(n)).run.read_metrics() for n in (100_000, 260)
    ]
    for one, many in zip(*runs, strict=True):
        for key in ("loss", "terms/next_token", "terms/image_order", "terms/guided_loss", "grad_norm"):
            assert many[key] == pytest.approx(one[key], rel=2e-4), (one["step"], key)


def test_recomputation_and_workers_change_no_bit(finished, tiny, tmp_path):
    recipe, whole = finished
    again = train(tiny("speed.recompute=all", "speed.workers=2"), out=tmp_path / "again").run
    assert figures(again) == figures(whole)


def _train_in_child(recipe, out, resume):
    os.setpgid(0, 0)
    torch.set_num_threads(1)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    train(recipe, out=out, resume=resume)


def test_sigterm_ends_in_a_checkpoint_and_resumes_bit_for_bit(finished, tmp_path, tiny):
    recipe, whole = finished
    out = tmp_path / "stopped"
    fork = multiprocessing.get_context("fork")
    child = fork.Process(target=_train_in_child, args=(recipe, out, False))
    child.start()
    deadline = time.monotonic() + 60
    while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").read_bytes().count(b"\n"):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(child.pid, signal.SIGTERM)
    child.join()
    done = RunFolder(out).read_metrics()[-1]["step"]
    saved = read.newest(RunFolder(out)).path
    assert saved is not None and read.step_of(saved) == done
    train(recipe, out=out, resume=True)
    assert figures(RunFolder(out)) == figures(whole)


@pytest.mark.parametrize("step", [2, 6, 12])
def test_a_stop_is_saved_even_where_nothing_else_is(finished, tiny, tmp_path, monkeypatch, step):
    recipe, steps = tiny("output.save_every=0"), []

    def run_step_and_signal(*args, **kwargs):
        steps.append(1)
        if len(steps) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return run_step(*args, **kwargs)

    monkeypatch.setattr(stage_loop, "run_step", run_step_and_signal)
    stopped = train(recipe, out=tmp_path / "run")
    assert stopped.signal == signal.SIGTERM
    saved = read.newest(stopped.run).path
    assert saved is not None and read.step_of(saved) == step
    assert [p.name for p in stopped.run.checkpoints.glob("step-*")] == [saved.name]
    assert train(recipe, out=tmp_path / "run", resume=True).signal is None
    assert figures(stopped.run) == figures(finished[1])


def test_a_stop_asked_for_between_stages_is_not_called_saved_before_it_is(
    finished, tiny, tmp_path, monkeypatch
):
    def save_and_signal(*args):
        save_model(*args)
        os.kill(os.getpid(), signal.SIGTERM)

    save_model = run_module.save_model
    monkeypatch.setattr(run_module, "save_model", save_and_signal)
    stopped = train(tiny("output.save_every=0"), out=tmp_path / "run")
    saved = read.newest(stopped.run).path
    assert stopped.signal and saved is not None and read.step_of(saved) == 6
    assert read.load(saved).state["position"]["stage"] == "finetune"
    monkeypatch.undo()
    assert train(tiny("output.save_every=0"), out=tmp_path / "run", resume=True).signal is None
    assert figures(stopped.run) == figures(finished[1])


def test_without_saving_a_run_leaves_no_checkpoint(tiny, tmp_path):
    run = train(
        tiny("output.save_every=0", text=PLAIN.replace("steps: 6", "steps: 1")), out=tmp_path / "run"
    ).run
    assert read.newest(run).path is None and run.model("finetune").is_dir()


@pytest.mark.parametrize(
    ("n", "step", "last", "due"),
    [(3, 3, False, True), (3, 4, False, False), (3, 4, True, True), (0, 4, True, False)],
)
def test_every_calls_when_due(n, step, last, due):
    called = []
    Every(n, called.append)(Position("s", step, step), last=last)
    assert bool(called) is due


def test_a_kernel_that_cannot_run_is_refused_before_the_folder_is_made(tiny, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("a machine where xformers may run")
    with pytest.raises(MachineError, match="model/attention-backend") as error:
        train(tiny("speed.attention=xformers"), out=tmp_path / "run")
    (problem,) = error.value.problems
    assert problem.where == "--set speed.attention=xformers"
    assert (
        "xformers: no kernels for cpu; flash: no kernels for cpu; sdpa: can run; eager: can run"
        in problem.got
    )
    assert not (tmp_path / "run").exists()


def test_a_stage_without_a_model_to_start_from_is_refused_before_the_folder_is_made(tiny, tmp_path):
    with pytest.raises(UserError, match="train/no-start-model") as error:
        train(tiny(), out=tmp_path / "run", stage="finetune")
    assert "stages.finetune.start" in error.value.problems[0].hint
    with pytest.raises(UserError, match="train/no-start-model"):
        train(tiny("stages.pretrain.start=absent"), out=tmp_path / "run")
    with pytest.raises(UserError, match="train/unknown-stage"):
        train(tiny(), out=tmp_path / "run", stage="finetun")
    assert not (tmp_path / "run").exists()


def test_a_stage_may_start_from_what_the_same_run_will_write(tiny, tmp_path):
    recipe = tiny(
        f"stages.finetune.start={tmp_path / 'run/model/pretrain'}", text=PLAIN.replace("steps: 6", "steps: 1")
    )
    assert train(recipe, out=tmp_path / "run").signal is None


def test_resume_refuses_other_data_and_names_what_changed(scenes, tmp_path):
    shutil.copytree(scenes, tmp_path / "data")
    text = DIRECT.replace("{steps: 6}", "{steps: 1}")

    def resume(root, text=text):
        return train(read_text(text, root=root), out=tmp_path / "run", resume=(tmp_path / "run").exists())

    def changed(root, text=text):
        with pytest.raises(UserError, match="resume/changed") as error:
            resume(root, text)
        return {p.where.rpartition(": ")[2] for p in error.value.problems}

    resume(tmp_path / "data")
    records = tmp_path / "data" / "finetune.json"
    before = records.read_text()
    records.write_text(before.replace("red", "tan"))
    assert changed(tmp_path / "data") == {"data.questions.records"}, "as many rows, as many bytes"
    records.write_text(before)
    other = text.replace(
        "pretrain.json, images: ., template: plain, image_fit: crop",
        "pretrain.json, images: ., template: plain, image_fit: pad",
    )
    assert changed(tmp_path / "data", other) == {"data.captions.image_fit"}
    shutil.copytree(tmp_path / "data", tmp_path / "moved")
    resume(tmp_path / "moved")
    image = tmp_path / "moved" / json.loads(before)[0]["image"]
    image.write_bytes(image.read_bytes() + b" ")
    assert "data.questions.images" in changed(tmp_path / "moved")


def test_resume_refuses_another_recipe_and_allows_another_speed(finished, tiny, tmp_path):
    out = tmp_path / "run"
    train(tiny("stages.finetune.length.steps=2"), out=out)
    recipe = tiny("stages.finetune.optim.lr=1e-3", "stages.finetune.length.steps=2")
    with pytest.raises(UserError, match="resume/changed") as error:
        train(recipe, out=out, resume=True)
    command = f"lmmkit train {out}/recipe.resolved.yaml --root {recipe.root} --out {out} --resume"
    assert all(f"`{command}`" in problem.hint for problem in error.value.problems)
    train(
        tiny("stages.finetune.length.steps=2", "speed.workers=1", "output.save_every=2"), out=out, resume=True
    )


def test_a_used_folder_is_refused(finished, tiny):
    with pytest.raises(UserError, match="run/exists"):
        train(tiny(), out=finished[1].path)


def test_a_stage_alone_starts_from_the_stage_before(finished, tiny, tmp_path):
    recipe, whole = finished
    start = f"stages.finetune.start={whole.model('pretrain')}"
    alone = train(tiny(start), out=tmp_path / "alone", stage="finetune").run
    assert figures(alone) == [line for line in figures(whole) if line["stage"] == "finetune"]


def test_a_term_without_items_for_fifty_steps_is_an_error(scenes, tiny, tmp_path):
    rows = json.loads((scenes / "finetune.json").read_text())
    for row in rows:
        del row["image"]
        for turn in row["conversations"]:
            turn["value"] = turn["value"].replace("<image>", "").strip()
    (tmp_path / "text.json").write_text(json.dumps(rows))
    recipe = tiny(
        f"data.questions.records={tmp_path / 'text.json'}", "stages.finetune.length.steps=60",
        "stages.pretrain.length.steps=1", "stages.finetune.batch.samples=1",
    )  # fmt: skip
    with pytest.raises(UserError, match="train/empty-term") as error:
        train(recipe, out=tmp_path / "run")
    assert {p.where.split(".")[-1] for p in error.value.problems} == {"image_order", "guided_loss"}


@pytest.mark.parametrize("read", ["token", "visual"])
def test_views_whose_image_is_cut_are_not_trained_on(scenes, tiny, tmp_path, read):
    """Half of the records have so many words before their image that it does not fit into the context."""
    rows = json.loads((scenes / "finetune.json").read_text())[:8]
    for i, row in enumerate(rows):
        row["conversations"] = row["conversations"][:2]
        words = "what is in it " * 60 if i % 2 else "Here "
        row["conversations"][0]["value"] = f"{words}<image> what is it?"
    (tmp_path / "cut.json").write_text(json.dumps(rows))
    text = DIRECT.replace("permutations: 5", f"permutations: 5, read: {read}")
    if read == "visual":
        text = text.replace("  directed_token: {place: end}\n", "")
    recipe = tiny(
        f"data.questions.records={tmp_path / 'cut.json'}", "stages.finetune.length.steps=8",
        "stages.finetune.batch.samples=1", "stages.finetune.batch.too_long=truncate",
        "stages.pretrain.length.steps=1", "output.images_every=1", text=text,
    )  # fmt: skip
    finished = train(recipe, out=tmp_path / "run")
    lines = finished.run.read_metrics()[1:]
    cut = [line for line in lines if line.get("dropped/truncated")]
    assert len(lines) == 8 and len(cut) == 4
    for line in lines:
        assert (line["terms/image_order"] is None) == (line in cut)
    for line in cut:
        assert line["dropped/image_cut"] == 1 and line["loss"] is None
    assert finished.dropped["image_cut"] == finished.dropped["empty_steps"] == 4


def test_a_stage_that_drops_every_answer_does_not_end_in_silence(tiny, tmp_path):
    recipe = tiny(
        "model.text.context=40", "stages.finetune.batch.too_long=drop", "stages.pretrain.batch.too_long=drop"
    )
    with pytest.raises(UserError, match="train/empty-term"):
        train(recipe, out=tmp_path / "run")


def test_a_changed_key_is_named_when_a_resume_is_refused(tiny, tmp_path):
    short = ("stages.pretrain.length.steps=1", "stages.finetune.length.steps=1")
    train(tiny(*short), out=tmp_path / "run")
    with pytest.raises(UserError) as error:
        train(tiny(*short, "seed=9"), out=tmp_path / "run", resume=True)
    assert [(p.where.split(": ")[1], p.got) for p in error.value.problems] == [("seed", "9")]


def test_an_ended_stage_leaves_no_moments_behind(tiny, tmp_path, monkeypatch):
    """Trains without the collector of cycles: a 7B stage's moments must not wait for it."""
    begun, alive = [], []
    stage = run_module.run_stage

    def watched(context, objective, optimizer, *args):
        alive.append([ended() is not None for ended in begun])
        begun.append(weakref.ref(optimizer))
        return stage(context, objective, optimizer, *args)

    monkeypatch.setattr(run_module, "run_stage", watched)
    gc.disable()
    try:
        train(tiny("output.images_every=0"), out=tmp_path / "run")
    finally:
        gc.enable()
    assert alive == [[], [False]]
