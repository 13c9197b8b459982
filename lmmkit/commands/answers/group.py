"""lmmkit answers score | compare | show | judge"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lmmkit.commands.evaluate import aligned, notes, print_published
from lmmkit.commands.support.common import (
    STARTING,
    Json,
    err,
    out,
    print_json,
    print_table,
    print_text,
    reporting,
)
from lmmkit.progress import plural, working

if TYPE_CHECKING:
    from lmmkit.evaluate.answers.compare import Comparison
    from lmmkit.evaluate.answers.schema import Answer

app = typer.Typer(
    no_args_is_help=True, help="Look at answers, score those of other programs, compare models."
)

BenchmarkName = Annotated[str, typer.Argument(metavar="BENCHMARK", help="A benchmark, such as pope.")]
ResultsPath = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run, a folder of results, or one of its tasks.")
]
TaskName = Annotated[str, typer.Argument(metavar="TASK", help="A task with answers.")]
OfficialFolder = Annotated[
    Path, typer.Option("--files", metavar="DIR", help="Official files, in DIR/BENCHMARK.")
]
SplitName = Annotated[
    str | None, typer.Option("--split", help="The split. \\[default: the benchmark's first]")
]


@app.command()
@reporting
def score(
    benchmark: BenchmarkName,
    files: OfficialFolder,
    answers: Annotated[Path, typer.Option("--answers", metavar="FILE", help="What another program wrote.")],
    form: Annotated[
        Literal["json", "jsonl", "lmmkit", "lmms-eval", "vlmevalkit", "mme"] | None,
        typer.Option("--format", help="The form of the file. \\[default: found out]"),
    ] = None,
    split: SplitName = None,
    published: Annotated[bool, typer.Option("--published", help="Also the published figures.")] = False,
    as_json: Json = False,
) -> None:
    """Score answers by the official rules, without a model."""
    from dataclasses import asdict

    with working(STARTING):
        from lmmkit.evaluate.answers.foreign import read_foreign
        from lmmkit.evaluate.answers.score import (
            NAMED,
            groups_without_answers,
            matched,
            questions_of_figures,
            score_answers,
        )

    made, items, split = _items(benchmark, files, split)
    read_as, found = read_foreign(answers, form)
    fitting = matched(items, found, str(answers))
    with working("scoring"):
        scored = score_answers(made, items, fitting, task=benchmark, split=split)
        whole = questions_of_figures(made, items) if fitting.missing and scored.figures else {}
    without = groups_without_answers(items, fitting)
    if as_json:
        figures = {
            name: asdict(figure) | ({"of": whole[name]} if name in whole else {})
            for name, figure in scored.figures.items()
        }
        more = {"format": read_as, "matched_by": fitting.by, "without_answers": without}
        return print_json({**figures, **scored.facts(), **more})
    if scored.figures:
        names, (head, *lines) = list(scored.figures), made.table(scored.figures)
        of = [f" of {whole[name]:,}" if name in whole else "" for name in names]
        print_table(
            aligned(
                benchmark, [head, *((*line[:-1], line[-1] + n) for line, n in zip(lines, of, strict=True))]
            )
        )
    out.print(f"{benchmark}: {read_as}, matched by {fitting.by}")
    for line in [*notes(scored.facts()), *fitting.notes()]:
        out.print(f"{benchmark}: {line}")
    for kind, groups in without.items():
        out.print(
            f"{benchmark}: no answer of {kind}: {', '.join(groups[:NAMED])}{' ...' if len(groups) > NAMED else ''}"
        )
    if published:
        print_published(benchmark, made, scored.figures, answers.name)


@app.command()
@reporting
def compare(
    first: Annotated[
        Path, typer.Argument(metavar="A", help="A run, a folder of results, or one of its tasks.")
    ],
    second: Annotated[Path, typer.Argument(metavar="B", help="The same of another model.")],
    on: Annotated[
        list[str] | None,
        typer.Option("--on", metavar="TASK,TASK", help="Only these. \\[default: all common]"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare two models on the same questions: paired differences and tests."""
    from dataclasses import asdict

    with working(STARTING):
        from lmmkit.evaluate.answers.compare import compare_tasks

    names = [name for each in on or () for name in each.split(",") if name]
    found = compare_tasks(*_common_answers(first, second, names))
    if as_json:
        return print_json([asdict(each) for each in found])
    print_table(aligned(f"A: {first}\nB: {second}", _comparison_lines(found)))
    for each in found:
        if each.left_out:
            print_text(
                f"{each.task}: {plural(each.left_out, 'scored answer')} to other questions or prompts left out"
            )
    print_text(
        "Mean scores by question, in points. p: McNemar's exact test, or for shares one by random signs, which take "
        "questions as independent; the interval does not, it draws images. detectable: the true difference that is "
        "found 4 times of 5. One training seed each: a difference may also come from the seed."
    )


def _common_answers(first: Path, second: Path, names: Sequence[str]) -> list[dict[str, list[Answer]]]:
    """Returns the answers of two models by task, of the tasks `names` or of all that both have, without those that have
    no scores. Raises `UserError` for a task that one of them lacks, and if there is none in common."""
    from lmmkit.errors import UserError, raise_all
    from lmmkit.errors.answers import NO_ANSWERS, SAME_ANSWERS
    from lmmkit.evaluate.answers.answers_file import NAME, by_key, read_answers
    from lmmkit.evaluate.answers.locate import task_folders

    folders = [task_folders(path) for path in (first, second)]
    if len(folders[0]) == len(folders[1]) == 1 and (first / NAME).is_file() and (second / NAME).is_file():
        task = next(iter(folders[0]))
        folders[1] = {task: second}
    common = [task for task in folders[0] if task in folders[1]]
    known = f"Tasks in both: {', '.join(common) or 'none'}."
    raise_all(NO_ANSWERS.at("--on", got=f"`{name}`", nearest=known) for name in names if name not in common)
    if not common:
        raise UserError(NO_ANSWERS.at(f"{first} and {second}", got="no task in common", nearest=known))
    raise_all(
        SAME_ANSWERS.at(str(second), got=f"the answers of {first} to {task}")
        for task in names or common
        if folders[0][task].resolve() == folders[1][task].resolve()
    )

    def answers_in(folder: Path) -> list[Answer]:
        return list(by_key(read_answers(folder / NAME), str(folder / NAME)).values())

    answers = [{task: answers_in(each[task]) for task in names or common} for each in folders]
    unscored = [task for task in answers[0] if all(a.score is None for each in answers for a in each[task])]
    if len(unscored) == len(answers[0]):
        return answers  # of unscored tasks alone there is an error
    for task in unscored:
        err.print(f"{task}: no scores, for a server or a judge has to give them")
    return [{task: several for task, several in each.items() if task not in unscored} for each in answers]


def _comparison_lines(found: Sequence[Comparison]) -> list[tuple[str, ...]]:
    """Returns comparisons as lines of a table, which fits into 80 columns, the headings first."""
    lines = [
        ("task", "A", "B", "B - A", "95 %", "only\nA", "only\nB", "p", "p\nHolm", "detect-\nable", "n"),
    ]
    for each in found:
        d = each.difference
        interval = "-" if d.low is None or d.high is None else f"{100 * d.low:+.1f} to {100 * d.high:+.1f}"
        detectable = "-" if each.detectable is None else f"{100 * each.detectable:.1f}"
        lines.append((
            each.task, f"{100 * each.first:.1f}", f"{100 * each.second:.1f}", f"{100 * d.value:+.1f}",
            interval, f"{each.only_first:,}", f"{each.only_second:,}", _probability(each.p),
            _probability(each.p_holm), detectable, f"{each.n:,}",
        ))  # fmt: skip
    return lines


def _probability(p: float) -> str:
    return "<.001" if p < 0.001 else f"{p:.3f}"


@app.command("show")
@reporting
def show_answers(
    run: ResultsPath,
    task: TaskName,
    which: Annotated[
        Literal["wrong", "changed", "unparsed", "all"],
        typer.Option("--which", help="Wrong ones, ones that another image changes, unparsed ones, or all."),
    ] = "wrong",
    n: Annotated[int, typer.Option("-n", min=1, help="How many.")] = 10,
) -> None:
    """Print questions with the model's answers."""
    with working(STARTING):
        from lmmkit.evaluate.answers.answers_file import NAME, read_answers
        from lmmkit.evaluate.answers.choose import as_text, chosen
        from lmmkit.evaluate.answers.locate import task_folder

    found = chosen(read_answers(task_folder(run, task) / NAME), which)
    for answers in found[:n]:
        typer.echo("\n".join(as_text(answers)) + "\n")
    err.print(f"{min(n, len(found)):,} of {len(found):,} ({which})")


@app.command()
@reporting
def judge(
    run: ResultsPath,
    task: TaskName,
    files: OfficialFolder,
    responses: Annotated[
        list[Path] | None, typer.Option("--responses", metavar="FILE", help="Lines of the judge. Repeatable.")
    ] = None,
    runs: Annotated[int, typer.Option("--runs", min=1, help="How often each answer is judged.")] = 3,
    split: Annotated[
        str | None, typer.Option("--split", help="The split. \\[default: that of the answers]")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the requests to a judge that are still open, or the figures of its responses."""
    from dataclasses import asdict

    with working(STARTING):
        from lmmkit.evaluate.answers.answers_file import HEADER, NAME, read_answers
        from lmmkit.evaluate.answers.locate import task_folder
        from lmmkit.evaluate.answers.outcome import REQUESTS
        from lmmkit.evaluate.answers.schema import OWN
        from lmmkit.evaluate.judge import judged, read_responses, write_requests
        from lmmkit.runs.files import read_json, write_json_atomic

    folder = task_folder(run, task)
    header = read_json(folder / HEADER)
    made, items, _ = _items(header.get("benchmark", task), files, split or header.get("split"))
    texts = {answer.id: answer.raw for answer in read_answers(folder / NAME) if answer.condition == OWN}
    asked = made.judge(items, texts)
    if asked is None:
        out.print(f"{task}: scored without a judge")
        return
    found = judged(asked, runs, read_responses(*(responses or ())))
    figures = made.judged_figures(items, found)
    write_requests(folder / REQUESTS, found.waiting)
    unscored = "pending-judge" if found.waiting else "no grade"
    facts = {
        "status": "scored" if figures else unscored, "judge": found.judge, "runs": runs, "scored": found.scored,
        "waiting": len(found.waiting), "parse_failed": found.parse_failed, "left_out": found.left_out,
    }  # fmt: skip
    write_json_atomic(
        folder / "judged.json", {**facts, "figures": {name: asdict(each) for name, each in figures.items()}}
    )
    if as_json:
        return print_json({**facts, **{name: asdict(figure) for name, figure in figures.items()}})
    if figures:
        print_table(aligned(task, made.table(figures)))
    out.print(f"{task}: " + ", ".join(f"{key} {value}" for key, value in facts.items()))
    if found.waiting:
        out.print(f"{task}: {plural(len(found.waiting), 'request')} in {folder / REQUESTS}")


def _items(name: str, files: Path, split: str | None):
    """Returns a benchmark, its items and its split. Raises `UserError` for an unknown one or missing files."""
    from lmmkit.errors import UserError, did_you_mean
    from lmmkit.errors.answers import NO_FILES
    from lmmkit.errors.plan import NO_TASK
    from lmmkit.evaluate.answers.locate import official_items
    from lmmkit.evaluate.benchmarks.names import BENCHMARKS

    if name not in BENCHMARKS:
        raise UserError(NO_TASK.at("BENCHMARK", got=f"`{name}`", nearest=did_you_mean(name, BENCHMARKS)))
    made, folder = BENCHMARKS[name](), files / name
    if not folder.is_dir():
        fix = "Name the folder above it with `--files DIR`."
        raise UserError(
            NO_FILES.at("--files", got=f"no folder {folder}", title=f"{made.title}: FILES/{name}", fix=fix)
        )
    split = split or made.splits[0]
    with working(f"{name}: reading the official files"):
        return made, official_items(made, folder, split), split
