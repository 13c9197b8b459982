"""`puzzles.json`: what is in it, how many, and who writes it."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from lmmkit.api.puzzle import Puzzle
from lmmkit.api.sample import Image, Sample, Turn
from lmmkit.evaluate.keep import Keep, OneProcess
from lmmkit.evaluate.questions import puzzles_file
from lmmkit.evaluate.questions.puzzles_file import Puzzles, puzzle_facts

TURNS = (Turn("user", "what?", images=1), Turn("assistant", "a cat"))
SAMPLES = [Sample(key=f"s{i}", turns=TURNS, images=(Image(f"/{i}.png"),)) for i in range(3)]
TILES = Puzzle(shuffled=(1, 0, 3, 2), predicted=(0, 1, 2, 3), gold=(0, 1, 2, 3), chance=0.2, grid=2, p_predicted=0.7, p_gold=0.7)  # fmt: skip
WRONG = Puzzle(shuffled=("é", "a"), predicted=("é", "a"), gold=("a", "é"), chance=0.5)


def keep(folder, rank: int = 0) -> Keep:
    return Keep(folder=folder, model={"checkpoint": "abc"}, ranks=OneProcess(world=2, rank=rank))


def test_the_file_has_every_puzzle_with_its_images(tmp_path):
    puzzles = Puzzles("held", SAMPLES)
    puzzles.add("tiles", "s0", TILES)
    puzzles.add("words", "s1", WRONG)
    puzzles.add("words", "s2", Puzzle(shuffled=("b", "a"), predicted=("a", "b"), gold=("a", "b"), chance=0.1))
    folder = tmp_path / "new" / "held"
    assert puzzle_facts(folder) == {}
    puzzles.write(keep(folder, rank=1), "s")
    assert not folder.exists(), "the first process writes"
    puzzles.write(keep(folder), "s")
    assert puzzle_facts(folder) == {"puzzles": "puzzles.json"}
    found = json.loads((folder / "puzzles.json").read_text())
    instances = found.pop("instances")
    assert found == {"format": 1, "task": "held", "stage": "s", "model": "abc"}
    (tiles,) = instances["tiles"].pop("puzzles")
    assert instances["tiles"] == {"n": 1, "right": 1, "chance": 0.2, "grid": 2}
    assert tiles == {
        "id": "s0", "images": ["/0.png"], "shuffled": [1, 0, 3, 2], "predicted": [0, 1, 2, 3], "gold": [0, 1, 2, 3],
        "right": True, "chance": 0.2, "p_predicted": 0.7, "p_gold": 0.7,
    }  # fmt: skip
    words = instances["words"]
    assert (words["n"], words["right"], words["grid"]) == (2, 1, 0)
    assert words["chance"] == pytest.approx(0.3)
    assert [line["right"] for line in words["puzzles"]] == [False, True]
    assert words["puzzles"][0]["gold"] == ["a", "é"] and words["puzzles"][0]["p_gold"] is None


def test_a_long_file_ends_but_its_counts_do_not(tmp_path, monkeypatch):
    monkeypatch.setattr(puzzles_file, "MOST", 2)
    puzzles = Puzzles("held", SAMPLES)
    for i in (0, 1, 2, 0, 1):
        puzzles.add("words", f"s{i}", WRONG if i else TILES)
    puzzles.write(keep(tmp_path), "s")
    found = json.loads((tmp_path / "puzzles.json").read_text())["instances"]["words"]
    assert (found["n"], found["right"], len(found["puzzles"])) == (5, 2, 2)


def test_without_puzzles_there_is_no_file(tmp_path):
    puzzles = Puzzles("held", SAMPLES)
    puzzles.add_outcome([], SimpleNamespace(ctxs={}))
    puzzles.write(keep(tmp_path), "s")
    assert list(tmp_path.iterdir()) == []
