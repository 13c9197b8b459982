"""The data set of a biased world: true answers, marks, boxes, hashes, empty landscapes, equal bytes."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from PIL import Image

from lmmkit.errors import UserError
from lmmkit.scenes import World, write_biased_scenes
from lmmkit.scenes import biased as biased_module
from lmmkit.scenes.biased import box_of, empty_scenes
from lmmkit.scenes.captions import INSTRUCTIONS
from lmmkit.scenes.draw import RGB, draw
from lmmkit.scenes.priors import KINDS
from lmmkit.scenes.scene import make_scene
from tests.scenes.test_priors import plain_answer

WORLD = World(bias=0.9, count=200, heldout=60, seed=4)
FILES = ("pretrain", "text", "finetune", "heldout", "heldout_balanced", "heldout_captions")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("world")
    found = write_biased_scenes(directory, WORLD)
    assert found == json.loads((directory / "scenes.json").read_text())
    return directory


@pytest.fixture(scope="session")
def rows(folder: Path) -> dict[str, list[dict]]:
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in FILES}


@pytest.fixture(scope="session")
def found(folder: Path) -> dict:
    return json.loads((folder / "scenes.json").read_text())


def pairs_of(row: dict) -> list[tuple[str, str]]:
    values = [turn["value"].replace("<image>", "").strip() for turn in row["conversations"]]
    return list(zip(values[::2], values[1::2], strict=True))


def scene_of(row: dict):
    split, index = Path(row["image"]).with_suffix("").parts[1:]
    return make_scene(4, split, int(index))


def test_answers_are_true_and_marked_by_the_prior(rows, found):
    usual = {text.format(slot): answer for kind, of in found["usual"].items() for slot, answer in of.items()
             for text in KINDS[kind].patterns}  # fmt: skip
    for name in ("finetune", "heldout", "heldout_balanced"):
        for row in rows[name]:
            for text, answer in pairs_of(row):
                assert plain_answer(scene_of(row), text) == answer
                if name != "finetune":
                    prior = "usual" if usual[text] == answer else "other"
                    kind, _, last = row["type"].rpartition(" ")
                    assert row["prior"] == last == prior and kind in KINDS
                    assert row["scene"] == row["id"].rpartition("/")[0]
    assert {row["prior"] for row in rows["heldout"]} == {"usual", "other"}


def test_the_shares_are_those_that_were_asked_for(rows, found):
    agree = {name: Counter(row["prior"] for row in rows[name]) for name in ("heldout", "heldout_balanced")}
    shares = {name: counts["usual"] / counts.total() for name, counts in agree.items()}
    keys = sum(map(len, found["usual"].values()))  # each is exact to one question
    assert abs(shares["heldout"] - 0.9) * len(rows["heldout"]) <= keys and shares["heldout_balanced"] < 0.4
    for name, share in shares.items():
        scores = found["questions"][f"{name}.json"]
        assert scores["prior"] == pytest.approx(share) and scores["number"] == len(rows[name])
        assert sum(each["number"] for each in scores["kinds"].values()) == len(rows[name])
        assert scores["majority"] == pytest.approx(share, abs=0.05), "training teaches the priors"


def test_a_box_surrounds_the_object_that_the_question_is_about(rows):
    with_box = 0
    for row in rows["heldout"] + rows["heldout_balanced"]:
        scene, ((text, answer),) = scene_of(row), pairs_of(row)
        named = [t for t in scene.things if t.colour in text or t.place in text]
        assert ("box" in row) == bool(named), text
        if not named:
            assert answer == "no" or text.startswith("How many")
            continue
        with_box += 1
        (thing,) = named
        # Slow twin: the pixels that the thing changes in the image, padded to a square.
        others = replace(scene, things=tuple(t for t in scene.things if t is not thing))
        changed = np.any(np.asarray(draw(scene)) != np.asarray(draw(others)), axis=-1)
        side = max(changed.shape)
        y, x = ((side - n) // 2 for n in changed.shape)
        ys, xs = np.nonzero(changed)
        seen = np.array([xs.min() + x, ys.min() + y, xs.max() + 1 + x, ys.max() + 1 + y]) / side
        assert np.abs(seen - row["box"]).max() < 2.5 / side, (row["id"], seen, row["box"])
    assert with_box > 200


def test_a_box_is_inside_the_image():
    for index in range(200):
        scene = make_scene(4, "train", index)
        for thing in scene.things:
            left, top, right, bottom = box_of(thing, scene)
            assert 0 <= left < right <= 1 and 0 <= top < bottom <= 1


def test_training_records_have_a_box_only_with_one_question(folder, rows, tmp_path):
    assert all(("box" in row) <= (len(pairs_of(row)) == 1) for row in rows["finetune"])
    write_biased_scenes(tmp_path, replace(WORLD, questions=1, count=100, heldout=20))
    single = json.loads((tmp_path / "finetune.json").read_text())
    assert all(len(pairs_of(row)) == 1 for row in single)
    assert sum("box" in row for row in single) > 20


def test_some_captions_are_about_landscapes_without_objects(folder, rows):
    for name, scenes in (("pretrain", 200), ("heldout_captions", 60)):
        empty = [row for row in rows[name] if "/empty/" in row["image"]]
        assert len(empty) == max(1, scenes // 16) and len(rows[name]) == scenes + len(empty)
        for row in empty:
            ((instruction, text),) = pairs_of(row)
            assert instruction in INSTRUCTIONS and not any(colour in text for colour in RGB)
            assert "no objects" in text or "empty" in text
    ids = [row["id"] for name in ("pretrain", "heldout_captions") for row in rows[name]]
    assert len(ids) == len(set(ids))
    # The control image is one that no training record shows.
    control = (folder / "empty.png").read_bytes()
    shown = {row["image"] for row in rows["pretrain"]}
    same = [p for p in (folder / "images" / "empty").iterdir() if p.read_bytes() == control]
    assert len(same) == 1 and same[0].relative_to(folder).as_posix() not in shown


def test_an_empty_landscape_has_no_things_and_a_place_of_its_own():
    train, heldout = empty_scenes(4, "train", 320, first=0), empty_scenes(4, "heldout", 30, first=20)
    assert [scene.id for scene in train] == [f"empty/{i:06d}" for i in range(20)]
    assert [scene.id for scene in heldout] == ["empty/000020"]
    assert all(scene.things == () and scene.suffix == "png" for scene in train + heldout)
    assert len({scene.scenery for scene in train + heldout}) == 21


def test_scenes_json_has_the_parameters_and_the_hash_of_each_file(folder, found):
    assert found["format"] == 1
    assert found["parameters"] == {
        "bias": 0.9, "kinds": list(KINDS), "count": 200, "heldout": 60, "seed": 4, "questions": 4, "text_records": 200,
    }  # fmt: skip
    hashes = {
        f"{name}.json": hashlib.sha256((folder / f"{name}.json").read_bytes()).hexdigest() for name in FILES
    }
    assert found["sha256"] == hashes
    text = (folder / "README.md").read_text()
    assert "--bias 0.9" in text and str(found["questions"]["heldout.json"]["number"]) in text
    assert str(folder) not in text and all(name in text for name in hashes)


def test_records_are_llava_records_and_images_open(folder, rows):
    images = {row["image"] for records in rows.values() for row in records if "image" in row}
    on_disk = {path.relative_to(folder).as_posix() for path in (folder / "images").rglob("*.*")}
    assert images == on_disk
    for name in sorted(images)[::7]:
        with Image.open(folder / name) as image:
            image.load()
    for name, records in rows.items():
        for row in records:
            markers = sum(turn["value"].count("<image>") for turn in row["conversations"])
            assert markers == (name != "text")


def test_the_tokenizer_knows_the_words(folder):
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    for word in ("USER", "ASSISTANT", "purple", "triangle", "centre", "empty"):
        assert len(model.encode(word)) == 1, word


def digest(directory: Path) -> dict[str, str]:
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*")) if path.is_file()
    }  # fmt: skip


def test_equal_worlds_write_equal_bytes_and_others_do_not(tmp_path):
    small = World(bias=0.7, count=100, heldout=20, kinds=("place/colour", "colour/place"))
    worlds = [
        small,
        replace(small, kinds=small.kinds[::-1]),
        replace(small, bias=0.8),
        replace(small, seed=1),
    ]
    calls: list[tuple[int, int]] = []
    found = []
    for number, world in enumerate(worlds):
        write_biased_scenes(tmp_path / str(number), world, progress=lambda *at: calls.append(at))
        found.append(digest(tmp_path / str(number)))
    assert found[0] == found[1]
    changed = {name for name in found[0] if found[0][name] != found[2][name]}
    assert changed >= {"text.json", "finetune.json", "heldout.json", "scenes.json", "README.md"}
    assert not {name for name in changed if name.startswith("images/")} and "pretrain.json" not in changed
    assert {name for name in found[0] if found[0][name] == found[3].get(name)} == set()
    assert calls[:127] == [(done, 127) for done in range(1, 128)]


def test_wrong_parameters_and_a_used_folder_are_reported_together(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(UserError) as caught:
        write_biased_scenes(tmp_path, World(bias=7, kinds=("size",), count=3, heldout=2))
    codes = [problem.code for problem in caught.value.problems]
    assert codes == [
        "scenes/bias",
        "scenes/unknown-kind",
        "scenes/too-few",
        "scenes/too-few",
        "scenes/not-empty",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(texts):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(biased_module, "train_tokenizer", full)
    with pytest.raises(OSError, match="No space"):
        write_biased_scenes(tmp_path, World(bias=0.9, count=100, heldout=20))
    assert list(tmp_path.iterdir()) == []
