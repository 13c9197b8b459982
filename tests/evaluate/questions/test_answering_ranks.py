"""Several processes, and processes that are killed: the same file as one process that nothing disturbs."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from lmmkit.evaluate.answers.answers_file import NAME, read_answers
from lmmkit.evaluate.keep import Keep
from lmmkit.evaluate.questions import asking
from lmmkit.evaluate.questions.answering import answer_questions, benchmark_questions
from lmmkit.training.distributed.process_group import joined
from tests.conftest import PLAIN
from tests.support import local_ranks
from tests.support.random_chat_model import random_chat_model
from tests.support.toy_benchmark import Toy, write_toy

CONTROLS = ("blank", "swapped", "none")


@pytest.fixture
def files(tmp_path):
    for i in range(6):
        Image.effect_noise((30 + i, 20), 80).convert("RGB").save(tmp_path / f"{i}.png")
    write_toy(tmp_path / "toy", [tmp_path / f"{i}.png" for i in range(6)], each=4)
    return tmp_path / "toy"


def evaluate(recipe, files: Path, folder: Path, ranks=None) -> dict:
    """Evaluates the toy benchmark on a random model; returns its figures."""
    made = Toy()
    items = made.items(files, split="test", cache=files)
    asked = benchmark_questions(made, items, task="toy", split="test", template="vicuna_v1", image_fit="pad")
    more = {} if ranks is None else {"ranks": ranks}
    keep = Keep(folder=folder, model={"checkpoint": "c", "folder": "m"}, **more)
    return answer_questions(random_chat_model(recipe), asked, controls=CONTROLS, keep=keep).figures


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_give_the_file_of_one_process(tiny, files, tmp_path, world):
    recipe = tiny(text=PLAIN)
    figures = evaluate(recipe, files, tmp_path / "one")

    def body(rank: int) -> None:
        torch.set_num_threads(1)
        with joined() as ranks:
            found = evaluate(recipe, files, tmp_path / "several", ranks)
            assert found == figures if rank == 0 else found == {}

    local_ranks.run(world, body, tmp_path / "ranks")
    assert (tmp_path / "several" / NAME).read_bytes() == (tmp_path / "one" / NAME).read_bytes()
    assert not list((tmp_path / "several").glob("*rank*"))


def test_one_process_continues_what_two_began(tiny, files, tmp_path):
    recipe = tiny(text=PLAIN)
    evaluate(recipe, files, tmp_path / "one")
    whole = read_answers(tmp_path / "one" / NAME)
    evaluate(recipe, files, tmp_path / "other")
    lines = [answer.as_line() for answer in whole]
    (tmp_path / "other" / NAME).write_text("".join(lines[5:20]))
    (tmp_path / "other" / "answers.rank-1.jsonl").write_text("".join(lines[30:50]) + lines[60][:40])
    evaluate(recipe, files, tmp_path / "other")
    assert (tmp_path / "other" / NAME).read_bytes() == (tmp_path / "one" / NAME).read_bytes()


def noting(asked: Path) -> None:
    """Lets this process note the keys of all batches that it answers, which are small."""
    replies = asking.replies

    def noted(chat_model, questions, **more):
        found = replies(chat_model, questions, **more)
        with asked.open("a") as file:
            file.write("".join(f"{' '.join(question.key)}\n" for question in questions))
        return found

    asking.replies = noted
    asking.CACHE_ROWS = 200  # small batches


def started(recipe, files: Path, folder: Path, asked: Path, world: int) -> list[int]:
    """Starts an evaluation by `world` ranks, which note what they answer; returns their process ids."""

    def body(rank: int) -> None:
        torch.set_num_threads(1)
        noting(asked)
        with joined() as ranks:
            evaluate(recipe, files, folder, ranks)

    return local_ranks.start(world, body, folder.parent / "ranks")


def ended(pid: int) -> bool:
    """Returns whether a child has ended."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def keys_in(folder: Path) -> list[str]:
    """Returns the keys of all whole lines in the files of all ranks; a merge that was killed leaves some twice."""
    lines = (line for file in folder.glob("answers*.jsonl") for line in file.read_bytes().split(b"\n")[:-1])
    return [f"{line['condition']} {line['id']}" for line in map(json.loads, lines)]


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("seed", range(8))
def test_killed_at_random_points_it_gives_the_same_file(tiny, files, tmp_path, world, seed):
    recipe, draw = tiny(text=PLAIN), random.Random(seed)
    began = time.monotonic()
    assert local_ranks.wait(started(recipe, files, tmp_path / "one", tmp_path / "n", world)) == [0] * world
    seconds, kills, lost = time.monotonic() - began, 0, 0
    for number in range(200):
        asked, kept = tmp_path / f"asked-{number}", keys_in(tmp_path / "killed")
        pids = started(recipe, files, tmp_path / "killed", asked, world)
        until = time.monotonic() + seconds * (draw.uniform(0, 1) if kills else draw.uniform(0.05, 0.5))
        while time.monotonic() < until and not all(map(ended, pids)):
            time.sleep(0.001)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        codes = local_ranks.wait(pids)
        keys = asked.read_text().splitlines() if asked.exists() else []
        assert len(keys) == len(set(keys)) and not set(keys) & set(kept), "an item was asked again"
        found = keys_in(tmp_path / "killed")
        assert set(kept) <= set(found), "a kill lost an answer that was written"
        lost += len(set(keys) - set(found))
        if codes == [0] * world:
            break
        assert all(code in (0, -signal.SIGKILL) for code in codes), codes
        kills += 1
    assert codes == [0] * world and kills > 0
    assert (tmp_path / "killed" / NAME).read_bytes() == (tmp_path / "one" / NAME).read_bytes()
    assert not list((tmp_path / "killed").glob("*rank*"))
    # what a kill loses between the answer and its line is one small batch of each rank
    assert lost <= 8 * world * kills
    print(f"{kills} kills lost {lost} answers")
