"""torchrun itself evaluates, as a user starts it: the file of one process, also after kills."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lmmkit.runs.files import read_jsonl
from tests.support.official_benchmarks import mm_vet
from tests.test_cli import run

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
LONGEST = 400  # seconds


def start(output: Path, *words: object) -> subprocess.Popen:
    """Starts `lmmkit eval` on two ranks, in a process group of their own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "lmmkit", "eval"]  # fmt: skip
    with output.open("w") as file:
        return subprocess.Popen(
            [*command, *map(str, words)],
            cwd=ROOT,
            stdout=file,
            stderr=file,
            start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )


def family(pid: int) -> list[int]:
    """Returns a process and all below it: each of torchrun's ranks has a session of its own."""
    try:
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        children = []
    return [pid, *(below for child in children for below in family(child))]


def kill(process: subprocess.Popen) -> None:
    """Kills torchrun and its ranks at once."""
    for pid in family(process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait(60)


def without_times(path: Path) -> dict:
    """Returns results without seconds."""
    return {
        name: {k: v for k, v in result.items() if k != "seconds"}
        for name, result in json.loads(path.read_text()).items()
    }


def test_two_ranks_write_the_files_of_one(answering, official, tmp_path):
    words = [answering / "model" / "finetune", "--on", "pope,scienceqa,mme,seed", "--files", official, "--probe"]  # fmt: skip
    output = tmp_path / "output.txt"
    process = start(output, *words, "--out", tmp_path / "two")
    assert process.wait(LONGEST) == 0, output.read_text()
    run("eval", *words, "--out", tmp_path / "one")
    for name in ("pope", "scienceqa", "mme", "seed"):
        for file in ("answers.jsonl", "attention.jsonl", "summary.json"):
            assert (tmp_path / "two" / name / file).read_bytes() == (
                tmp_path / "one" / name / file
            ).read_bytes()
        assert not list((tmp_path / "two" / name).glob("*rank*"))
    assert without_times(tmp_path / "two" / "results.json") == without_times(tmp_path / "one" / "results.json")  # fmt: skip
    text = output.read_text()
    assert text.count("pope: 12 of 12 answered") == 1 and "Traceback" not in text


def test_bad_input_is_reported_once(answering, official, tmp_path):
    output = tmp_path / "output.txt"
    for words, code in (
        (["--on", "pope", "--files", tmp_path / "none"], "answers/no-files"),
        (["--on", "pope,gqa,nothing", "--files", official], "evaluate/unknown-task"),
    ):
        process = start(output, answering / "model" / "finetune", *words, "--out", tmp_path / "o")
        assert process.wait(LONGEST) != 0
        text = output.read_text()
        assert text.count(code) == 1 and "exitcode  : 2" in text, text
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("seed", range(2))
def test_killed_ranks_continue_to_the_same_file(answering, tmp_path, seed):
    (tmp_path / "files/mm-vet").mkdir(parents=True)
    mm_vet(tmp_path / "files/mm-vet", n=60)
    words = [answering / "model" / "finetune", "--on", "mm-vet", "--files", tmp_path / "files"]
    run("eval", *words, "--out", tmp_path / "one")
    whole = (tmp_path / "one/mm-vet/answers.jsonl").read_bytes()
    kept, kills, draw = tmp_path / "killed/mm-vet", 0, random.Random(seed)

    def lines() -> list[bytes]:
        """Returns the whole lines of all ranks."""
        found = []
        for file in sorted(kept.glob("answers*.jsonl")) if kept.is_dir() else []:
            with contextlib.suppress(FileNotFoundError):  # a merge removes the other ranks' files
                found += file.read_bytes().split(b"\n")[:-1]
        return found

    before: list[bytes] = []
    for number in range(20):
        process = start(tmp_path / f"output-{number}.txt", *words, "--out", tmp_path / "killed")
        until, later = time.monotonic() + LONGEST, draw.uniform(0, 0.5)
        while process.poll() is None and len(lines()) <= len(before):
            assert time.monotonic() < until
            time.sleep(0.01)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(later)
        if process.poll() is not None:
            break
        kill(process)
        kills += 1
        after = lines()
        assert set(before) <= set(after), "a kill lost an answer that was written"
        for file in kept.glob("answers*.jsonl"):
            each = file.read_bytes().split(b"\n")[:-1]
            assert len(each) == len(set(each)), "a question was asked twice"
        before = after
    assert process.returncode == 0 and kills > 0, (tmp_path / f"output-{number}.txt").read_text()
    assert (kept / "answers.jsonl").read_bytes() == whole and not list(kept.glob("*rank*"))
    assert len(read_jsonl(kept / "judge_requests.jsonl")) == 180
    print(f"{kills} kills")
