"""Bad records: their description, how many a source may have, and the list that a run writes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lmmkit.errors import Problem, UserError
from lmmkit.errors.data import TOO_MANY
from lmmkit.progress import plural
from lmmkit.runs.files import write_text_atomic

ALWAYS = 10  # bad records that `skip` always allows, even in a small source


class BadRecord(NamedTuple):
    """Describes one problem of one record. `key` is the part of the record; `record` is the number of
    the record, from 0. `line` counts from 1; it is 0 in a shard."""

    file: str
    line: int
    record: int
    id: str
    code: str
    key: str
    got: str
    expected: str
    hint: str

    @classmethod
    def of(cls, problem: Problem, place: tuple[str, int, int], id: str = "", key: str = "") -> BadRecord:
        """Describes `problem` of the record at `place`: (file, line, record)."""
        return cls(*place, id, problem.code, key, problem.got, problem.expected, problem.hint)

    def problem(self) -> Problem:
        """Returns the problem, with the place of the record as `where`."""
        id_ = f", id {self.id[:80]!a}" if self.id else ""
        where = record_place(self.file, self.line, self.record, id_)
        return Problem(self.code, where, self.got, self.expected, self.hint)


def record_place(file: str, line: int, record: int, id_: str = "") -> str:
    """Returns the place of a record as messages name it."""
    return f"{file}:{line} (record {record}{id_})" if line else f"{file} (record {record}{id_})"


@dataclass(frozen=True)
class Policy:
    """Describes what a bad record causes: `error` stops; `skip` skips up to `share` of the records,
    and always up to ten."""

    kind: Literal["error", "skip"] = "error"
    share: float = 0.001

    def allowed(self, records: float) -> int:
        """Returns how many bad records may be skipped among `records` records."""
        return max(ALWAYS, int(self.share * records)) if self.kind == "skip" else 0


STRICT = Policy()


@dataclass(kw_only=True)
class BadRecordLog:
    """Writes the list of bad records that a stage skipped, one JSON object a line, and checks their bound.

    `per_step`: average number of records that each source gives in a step. `before`: steps of the run before
    the stage. Steps that are repeated after a stop are listed once. All ranks count, one `writes`.
    """

    path: Path
    stage: str
    before: int
    policies: Mapping[str, Policy]
    per_step: Mapping[str, float]
    writes: bool = True
    counts: Counter[str] = field(default_factory=Counter)

    def open(self, step: int, known: Mapping[str, Iterable[BadRecord]]) -> None:
        """Continues the list after `step` of the run. `known`: bad records in the index of each source."""
        lines = [line for line in _lines(self.path) if line["step"] <= step]
        if not any((line["stage"], line["step"]) == (self.stage, self.before) for line in lines):
            lines += [self._line(self.before, name, bad) for name in known for bad in known[name]]
        mine = {
            (line["source"], line["record"], line["step"]) for line in lines if line["stage"] == self.stage
        }
        self.counts = Counter(source for source, _, at in mine if at > self.before)
        if self.writes and (lines or self.path.exists()):
            write_text_atomic(self.path, "".join(json.dumps(line) + "\n" for line in lines))

    def add(self, index: int, bad_records: Iterable[tuple[str, Iterable]]) -> None:
        """Lists bad records of the stage's step `index`, by source. Raises `UserError` above the bound."""
        found, step = [(name, BadRecord(*bad)) for name, bad in bad_records], self.before + index + 1
        if not found:
            return
        if self.writes:
            with open(self.path, "a", encoding="utf-8") as file:
                file.writelines(json.dumps(self._line(step, *each)) + "\n" for each in found)
        self.counts.update(source for source, _ in {(name, bad.record): bad for name, bad in found})
        for name in {name for name, _ in found}:
            most = self.policies[name].allowed(self.per_step[name] * (index + 1))
            if self.counts[name] > most:
                got = f"{plural(self.counts[name], 'bad record')} of source `{name}`, listed in {self.path}"
                last = [bad.problem() for source, bad in found if source == name]
                more = TOO_MANY.at(f"data.{name}", got=got, most=f"{most} by step {step}")
                raise UserError([*last, more])

    def _line(self, step: int, source: str, bad: BadRecord) -> dict[str, Any]:
        return {"step": step, "stage": self.stage, "source": source, **bad._asdict()}


def _lines(path: Path) -> list[dict[str, Any]]:
    """Returns the complete lines of the list. A kill can leave an incomplete last line, which is skipped."""
    if not path.exists():
        return []
    found = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            break
        if not isinstance(line, dict) or not line.keys() >= {"step", "stage", "source", "record"}:
            break
        found.append(line)
    return found
