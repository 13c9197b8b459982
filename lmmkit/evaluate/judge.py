"""Grades answers by a language model, the judge, through files: requests out, responses in.

lmmkit connects to nothing. Any client sends the messages of each line of `judge_requests.jsonl` to a judge, and
writes lines {"hash", "text", "judge", "date"}: the request's hash, the raw text, the model's exact name, the day.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lmmkit.errors import Problem, raise_all
from lmmkit.errors.judge import JUDGE_MIXED, JUDGE_RESPONSE, JUDGE_TWICE, JUDGE_UNASKED
from lmmkit.evaluate.official_files import named
from lmmkit.runs.files import write_text_atomic

Grade = tuple[float, ...]
Messages = tuple[Mapping[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class JudgeRequest:
    """Describes one request to a judge. Runs repeat all requests; an attempt repeats one without a grade."""

    benchmark: str
    item: str
    run: int
    attempt: int
    judge: str
    temperature: float
    max_tokens: int
    messages: Messages

    @property
    def hash(self) -> str:
        """Returns the SHA-256 of all fields, by which a response names its request."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class JudgeResponse:
    """Holds a line of a file of responses; `where` names the file and the line."""

    hash: str
    text: str
    judge: str
    where: str


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Describes how a benchmark's answers are judged.

    `model`: the judge that the benchmark names. `temperatures`: one for each attempt. `first`, `again`: the messages
    of the first attempt and of later ones, by item. `parse`: returns the grade in a text, or None. `failed`: the
    grade if all attempts failed; None leaves the item out.
    """

    benchmark: str
    model: str
    max_tokens: int
    temperatures: tuple[float, ...]
    parse: Callable[[str], Grade | None]
    first: Mapping[str, Messages]
    again: Mapping[str, Messages] = field(default_factory=dict)
    failed: Grade | None = None

    def request(self, item: str, run: int, attempt: int) -> JudgeRequest:
        """Returns one request; runs and attempts count from 1."""
        return JudgeRequest(
            benchmark=self.benchmark,
            item=item,
            run=run,
            attempt=attempt,
            judge=self.model,
            temperature=self.temperatures[attempt - 1],
            max_tokens=self.max_tokens,
            messages=(self.first if attempt == 1 else self.again)[item],
        )


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Holds what the responses so far say.

    `judge`: the model that answered. `grades`: for each run, the grades by item; None for an item that is left out.
    `parse_failed`: the responses without a grade. `waiting`: the requests without a response; there is no score
    as long as there are any.
    """

    judge: str | None
    grades: tuple[Mapping[str, Grade | None], ...]
    parse_failed: int
    waiting: tuple[JudgeRequest, ...]

    @property
    def scored(self) -> int:
        """Returns the number of grades, over all runs."""
        return sum(grade is not None for grades in self.grades for grade in grades.values())

    @property
    def left_out(self) -> int:
        """Returns the number of items without a grade after the last attempt, over all runs."""
        return sum(grade is None for grades in self.grades for grade in grades.values())


def judged(judge: Judge, runs: int, responses: Sequence[JudgeResponse] = ()) -> Judged:
    """Returns the grades in the responses, and the requests that still wait for one: at the start, the first of all.

    Raises `UserError` if the responses come from several models, or do not belong to requests of this judge.
    """
    by_hash = {response.hash: response for response in responses}
    used: set[str] = set()
    failed = 0
    grades: list[dict[str, Grade | None]] = []
    waiting: list[JudgeRequest] = []
    for run in range(1, runs + 1):
        graded: dict[str, Grade | None] = {}
        for item in judge.first:
            for attempt in range(1, len(judge.temperatures) + 1):
                request = judge.request(item, run, attempt)
                if request.hash not in by_hash:
                    waiting.append(request)
                    break
                used.add(request.hash)
                grade = judge.parse(by_hash[request.hash].text)
                if grade is not None:
                    graded[item] = grade
                    break
                failed += 1
            else:
                graded[item] = judge.failed
        grades.append(graded)
    raise_all(_strangers(responses, used))
    model = responses[0].judge if responses else None
    return Judged(judge=model, grades=tuple(grades), parse_failed=failed, waiting=tuple(waiting))


def write_requests(path: Path, requests: Sequence[JudgeRequest]) -> None:
    """Writes `judge_requests.jsonl`: one request a line, with its hash."""
    lines = (json.dumps({"hash": each.hash, **asdict(each)}) + "\n" for each in requests)
    write_text_atomic(path, "".join(lines))


def read_responses(*paths: Path) -> list[JudgeResponse]:
    """Returns the responses in files. Raises `UserError` with all lines that are none, or repeat another."""
    found: dict[str, JudgeResponse] = {}
    problems = []
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            expected = "a file of judge responses in UTF-8"
            problems.append(JUDGE_RESPONSE.at(str(path), got=str(error), expected=expected))
            continue
        for number, line in enumerate(text.split("\n"), start=1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            got = _response(line, where)
            if isinstance(got, Problem):
                problems.append(got)
            elif got.hash in found:
                problems.append(
                    JUDGE_TWICE.at(where, got=f"hash {got.hash[:12]} also in {found[got.hash].where}")
                )
            else:
                found[got.hash] = got
    raise_all(problems)
    return list(found.values())


def _response(line: str, where: str) -> JudgeResponse | Problem:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return JUDGE_RESPONSE.at(where, got=f"no JSON ({error})", expected="a JSON object")
    if not isinstance(value, dict):
        return JUDGE_RESPONSE.at(where, got=f"a JSON {type(value).__name__}", expected="a JSON object")
    for key in ("hash", "text", "judge"):
        if not isinstance(value.get(key), str) or (key != "text" and not value[key].strip()):
            got = f"`{key}`: {value[key]!r:.60}" if key in value else f"no key `{key}`"
            return JUDGE_RESPONSE.at(where, got=got, expected=f"`{key}`: a text")
    return JudgeResponse(hash=value["hash"], text=value["text"], judge=value["judge"], where=where)


def _strangers(responses: Sequence[JudgeResponse], used: set[str]) -> Iterator[Problem]:
    """Yields problems of responses that cannot be in one score."""
    models: dict[str, str] = {}
    for response in responses:
        models.setdefault(response.judge, response.where)
    if len(models) > 1:
        got = ", ".join(f"`{model}` ({where})" for model, where in models.items())
        yield JUDGE_MIXED.at(responses[0].where, got=got)
    if unasked := [response for response in responses if response.hash not in used]:
        got = f"{len(unasked):,} of {len(responses):,}: {named([each.hash[:12] for each in unasked])}"
        yield JUDGE_UNASKED.at(unasked[0].where, got=got)
