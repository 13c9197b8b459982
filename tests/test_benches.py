"""The benches' own arithmetic, and that the GPU script runs its road on a CPU."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from benches import first, gpu, pairs, summary

ROOT = Path(__file__).resolve().parent.parent


def case(**changes) -> dict:
    return {
        "ratio": 1.5,
        "low": 1.4,
        "high": 1.6,
        "pairs": 15,
        "sense": "at least",
        "gate": 1.2,
        "target": 2.0,
    } | changes


@pytest.mark.parametrize(("changes", "word"), [
    ({}, "pass"), ({"low": 1.1}, "MISSED"), ({"low": 2.0}, "target"), ({"gate": None}, ""), ({"target": None}, "pass"),
    ({"sense": "at most", "gate": 1.6, "target": 1.0}, "pass"), ({"sense": "at most", "gate": 1.5}, "MISSED"),
    ({"sense": "at most", "gate": 1.7, "target": 1.6}, "target"),
])  # fmt: skip
def test_the_near_end_of_the_interval_decides(changes, word):
    assert pairs.verdict(case(**changes)) == word


def test_an_interval_holds_the_median_of_fifteen_at_95_percent():
    assert pairs._cut(15) == 3  # P(fewer than 4 of 15 below the median) = 1.8 % on either side


def test_comparing_alternates_and_divides_the_peer_by_ours(monkeypatch):
    called, clock = [], iter(range(10_000))
    monkeypatch.setattr(pairs.time, "perf_counter", lambda: next(clock))
    found = pairs.compare(lambda: called.append("ours"), lambda: called.append("peer"), pairs=4)
    assert called == ["ours", "peer", "peer", "ours", "ours", "peer", "peer", "ours", "ours", "peer"]
    assert found["ratio"] == found["low"] == found["high"] == 1.0


FAULTS = """
import resource, numpy
for i in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    numpy.ones(9 << 20, numpy.float32)  # above 32 MiB, which glibc never keeps by itself
    after = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(after - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_the_environment_that_performance_md_names_keeps_memory(monkeypatch):
    def faults() -> int:
        return int(subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, check=True).stdout)

    named = " ".join(f"{name}={value}" for name, value in pairs.KEPT.items())
    assert f"    {named} lmmkit train" in (ROOT / "docs" / "performance.md").read_text()
    for name in pairs.KEPT:
        monkeypatch.delenv(name, raising=False)
    assert faults() > 15 and not pairs.keeps_memory()  # 18 where pages are of 2 MiB, else thousands
    for name, value in pairs.KEPT.items():
        monkeypatch.setenv(name, value)
    assert faults() < 15 and pairs.keeps_memory()


def test_the_summary_counts_missed_gates(tmp_path, capsys):
    cases = [
        {"name": "test_a[x]", "extra_info": case(peer="p")},
        {"name": "test_b", "extra_info": case(low=1.0, peer="p")},
    ]
    (tmp_path / "r.json").write_text(json.dumps({"benchmarks": cases}))
    assert summary.main(tmp_path / "r.json") == 1
    text = capsys.readouterr().out
    assert "a[x]" in text and "MISSED" in text and ">= 1.20" in text


def test_the_first_checks_on_a_gpu_run_on_a_cpu_and_one_that_fails_hides_no_other(
    tmp_path, monkeypatch, capsys
):
    def unlike(*given):
        raise RuntimeError("no such\nkernel")

    args = ["--stage", "first", "--device", "cpu", "--tiny", "--out", str(tmp_path)]
    assert gpu.main(args) == 0
    whole = json.loads((tmp_path / "first.json").read_text())["rows"]
    for words in (
        "block on sdpa in bfloat16",
        "kept by eager",
        "wait",
        "same bits",
        "empty",
        "flash in float32",
    ):
        assert any(words in row["what"] for row in whole)
    monkeypatch.setattr(first, "_share", unlike)
    for name in ("_block", "_twice"):  # the other checks are made above
        monkeypatch.setattr(first, name, lambda *given: (True, "as before"))
    assert gpu.main(args) == 1
    rows = json.loads((tmp_path / "first.json").read_text())["rows"]
    assert [row["what"] for row in rows] == [row["what"] for row in whole]
    assert {row["value"] for row in rows if row["broken"]} == {"RuntimeError: no such"}
    assert "## first: cpu" in (tmp_path / "first.md").read_text() and "no such" in capsys.readouterr().out


@pytest.mark.slow
def test_the_gpu_script_takes_its_road_on_a_cpu(tmp_path):
    command = [sys.executable, "benches/gpu.py", "--device", "cpu", "--tiny", "--out", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    for stage in ("first", "ceilings", "parity", "kernels", "layers", "steps", "compiled", "ablations"):
        found = json.loads((tmp_path / f"{stage}.json").read_text())
        assert found["rows"] and not any(row.get("broken") for row in found["rows"])
        assert f"## {stage}: cpu" in (tmp_path / f"{stage}.md").read_text()


@pytest.mark.parametrize("command", [
    ("benches.saves", "--mb", "8", "--rounds", "1"),
    pytest.param(("benches.rows", "--rows", "3000"), marks=pytest.mark.slow),
    pytest.param(("benches.parquet_rows", "--rows", "3000"), marks=pytest.mark.slow),
    ("benches.scoring", "--answers", "2000"),
    pytest.param(("benches.roofline",), marks=pytest.mark.slow),
    pytest.param(("benches.mass_calls", "--tiny", "--pairs", "2"), marks=pytest.mark.slow),
    pytest.param(("benches.nccl", "--cpu", "--most", "2"), marks=pytest.mark.slow),
], ids=lambda command: command[0])  # fmt: skip
def test_a_script_runs_to_its_end(command):
    """Accepts 1, a missed gate: times are not judged in tests."""
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (0, 1) and "Traceback" not in done.stderr, done.stderr[-2000:]
    assert done.stdout.strip()


@pytest.mark.slow
def test_a_bench_measures_when_it_is_asked_to(tmp_path):
    """pytest-benchmark switches itself off, with a warning, where the suite's xdist is on."""
    out = tmp_path / "out.json"
    command = [sys.executable, "-m", "pytest", "-q", "benches/test_head.py", "-k", "peak and 32k-6"]
    subprocess.run([*command, f"--benchmark-json={out}"], cwd=ROOT, check=True, capture_output=True)
    (case,) = json.loads(out.read_text())["benchmarks"]
    assert case["extra_info"]["ratio"] > 1
