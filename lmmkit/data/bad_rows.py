"""Bad rows: what is told of one, how many a source may have, and the list a run keeps of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lmmkit.errors import Problem, UserError
from lmmkit.files import write_text_atomic

ALWAYS = 10  # bad rows that `skip` passes over, however few rows there are


class BadRow(NamedTuple):
    """One thing wrong in one row. `key` is the part of the row; `row` counts from 0, `line` from 1
    (0: the row has no line)."""

    file: str
    line: int
    row: int
    id: str
    code: str
    key: str
    found: str
    wanted: str
    mend: str

    def problem(self) -> Problem:
        """The same as a problem."""
        said = f", id {self.id[:80]!a}" if self.id else ""
        where = f"{place(self.file, self.line, self.row, said)}"
        return Problem(self.code, where, self.found, self.wanted, self.mend)


def place(file: str, line: int, row: int, said: str = "") -> str:
    """Where a row stands, for a message."""
    return f"{file}:{line} (row {row}{said})" if line else f"{file} (row {row}{said})"


@dataclass(frozen=True)
class Policy:
    """What a bad row means: `error` stops; `skip` passes over up to `share` of the rows, and ten
    in any case."""

    kind: Literal["error", "skip"] = "error"
    share: float = 0.001

    def allowed(self, rows: float) -> int:
        """How many bad ones are passed over among so many."""
        return max(ALWAYS, int(self.share * rows)) if self.kind == "skip" else 0


STRICT = Policy()


@dataclass(kw_only=True)
class Ledger:
    """The list of bad rows that a stage passed over, one JSON object a line, and their bound.

    `seen`: rows that each source gives a step, on average. `before`: steps of the run before the
    stage. What a run did again after a stop is listed once. Of several ranks all count, and one `writes`.
    """

    path: Path
    stage: str
    before: int
    policies: Mapping[str, Policy]
    seen: Mapping[str, float]
    writes: bool = True
    counts: Counter[str] = field(default_factory=Counter)

    def open(self, step: int, known: Mapping[str, Iterable[BadRow]]) -> None:
        """Goes on after `step` of the run. `known` was left out of each source before any step."""
        lines = [line for line in _lines(self.path) if line["step"] <= step]
        if not any((line["stage"], line["step"]) == (self.stage, self.before) for line in lines):
            lines += [self._line(self.before, name, bad) for name in known for bad in known[name]]
        mine = {(line["source"], line["row"], line["step"]) for line in lines if line["stage"] == self.stage}
        self.counts = Counter(source for source, _, at in mine if at > self.before)
        if self.writes and (lines or self.path.exists()):
            write_text_atomic(self.path, "".join(json.dumps(line) + "\n" for line in lines))

    def add(self, index: int, found: Iterable[tuple[str, Iterable]]) -> None:
        """Bad rows of the stage's step `index`, by source. Raises `UserError` above the bound."""
        found, step = [(name, BadRow(*bad)) for name, bad in found], self.before + index + 1
        if not found:
            return
        if self.writes:
            with open(self.path, "a", encoding="utf-8") as file:
                file.writelines(json.dumps(self._line(step, *each)) + "\n" for each in found)
        self.counts.update(source for source, _ in {(name, bad.row): bad for name, bad in found})
        for name in {name for name, _ in found}:
            most = self.policies[name].allowed(self.seen[name] * (index + 1))
            if self.counts[name] > most:
                got = f"{self.counts[name]} bad rows of source `{name}`, listed in {self.path}"
                want = f"at most {most} by step {step}"
                mend = f"Mend the data (`lmmkit data check`), or raise `data.{name}.bad_share`; resume."
                last = [bad.problem() for source, bad in found if source == name]
                raise UserError([*last, Problem("records/too-many", f"data.{name}", got, want, mend)])

    def _line(self, step: int, source: str, bad: BadRow) -> dict[str, Any]:
        return {"step": step, "stage": self.stage, "source": source, **bad._asdict()}


def _lines(path: Path) -> list[dict[str, Any]]:
    """What is whole of the list; a last line that a kill cut off is not."""
    if not path.exists():
        return []
    found = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            break
        if not isinstance(line, dict) or not line.keys() >= {"step", "stage", "source", "row"}:
            break
        found.append(line)
    return found
