"""The published figures of LLaVA-1.5 and Direct-LLaVA, each with what makes it hard to compare with another one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from lmmkit.evaluate.task import Figure, Line

COLUMNS: dict[str, tuple[str, ...]] = {
    "vqav2": ("accuracy",),
    "gqa": ("accuracy",),
    "vizwiz": ("accuracy",),
    "scienceqa": ("image accuracy",),
    "textvqa": ("accuracy",),
    "pope": ("random", "popular", "adversarial"),
    "seed": ("all", "image", "video"),
    "mme": ("perception",),
    "llava-wild": ("score",),
    "mm-vet": ("score",),
    "mmmu": ("accuracy",),
    "mmbench": ("circular accuracy",),
}
"""The numbers that papers print for each benchmark."""

_ORDER = tuple(COLUMNS)
ROWS: dict[str, str] = {
    "LLaVA-1.5 7B": "78.5 62.0 50.0 66.8 58.2 87.3/86.1/84.2 58.6/66.1/37.3 1510.7 65.4 31.1 35.3 64.3",
    "LLaVA-1.5 13B": "80.0 63.3 53.6 71.6 61.3 87.1/86.2/84.5 61.6/68.2/42.7 1531.3 72.5 36.1 36.4 67.7",
    "Direct-LLaVA Vicuna-7B": "79.0 63.2 52.5 74.3 63.2 88.8/88.9/86.0 63.3/69.7/38.8 1524.9 69.7 32.8 36.1 -",
    "Direct-LLaVA Qwen-7B": "79.9 63.3 54.3 75.7 65.1 89.0/88.3/87.0 64.0/70.4/40.0 1538.1 71.0 36.0 36.9 -",
    "Direct-LLaVA LLaMA-8B": "80.0 63.9 54.4 75.8 64.9 89.2/87.0/83.4 64.2/70.5/40.1 1555.1 71.1 36.0 37.6 -",
    "Direct-LLaVA Vicuna-13B": "81.6 65.3 54.9 77.3 65.4 90.5/89.2/87.8 65.6/71.5/43.3 1572.1 72.3 41.1 38.0 -",
}
"""The figures of each model, one benchmark after the other; `-` where none is published."""

CAVEATS: dict[str, tuple[str, ...]] = {
    "vqav2": (
        "Question set: test-dev 2015, scored by the server; val is another set. LLaVA-1.5 was trained on VQAv2.",
    ),
    "gqa": ("Question set: testdev balanced, 12,578 questions on 398 images. LLaVA-1.5 was trained on GQA.",),
    "vizwiz": ("Question set: test, scored by the server; a score on val is not comparable.",),
    "scienceqa": (
        "Subset: the 2,017 test questions with an image. Other runs of the published 7B weights give 67.9 to 68.0, and "
        "retrained ones up to 70.8, so train the baseline in the same pipeline.",
        "Parser: the official one takes `B.` for no answer.",
    ),
    "textvqa": (
        "OCR: the published figures have OCR tokens in the prompt; without them LLaVA-1.5 7B is far lower.",
    ),
    "pope": (
        "Metric: the figures of LLaVA-1.5 are F1. Direct-LLaVA does not say whether its figures are F1 or accuracy.",
        "Question set: the random file has 2,910 questions in the release that LLaVA names, 3,000 now.",
    ),
    "seed": (
        "Question set: `all` is of 19,242 questions for LLaVA-1.5 and of 17,990 for Direct-LLaVA. On the new set the "
        "answers of LLaVA-1.5 13B score 62.8, not 61.6.",
    ),
    "mme": (
        "Spread: the standard error from the images is about 31 points, and retraining moves it by about 20.",
    ),
    "llava-wild": ("Judge: the mean of three runs of a GPT-4 snapshot that is retired.",),
    "mm-vet": (
        "Judge: a GPT-4 snapshot that is retired; LLaVA-1.5 13B is its first of three runs, 7B their mean.",
    ),
    "mmmu": (
        "Source: the figures of LLaVA-1.5 are quoted from the Direct-LLaVA table. Official runs draw answers at "
        "random; greedy ones differ.",
    ),
    "mmbench": (
        "Question set: dev_20230712, 1,176 questions with all rotations; later releases have other counts.",
    ),
}


def published(benchmark: str) -> dict[str, tuple[float, ...]]:
    """Returns the published figures of each model for a benchmark; only models that have them."""
    place = _ORDER.index(benchmark)
    cells = {model: row.split()[place] for model, row in ROWS.items()}
    return {model: tuple(map(float, cell.split("/"))) for model, cell in cells.items() if cell != "-"}


def published_table(benchmark: str, own: Mapping[str, Figure], scale: float, name: str) -> list[Line]:
    """Returns headings, the published rows, and a row of one's own figures: its first one, or those that have the
    names of the columns."""
    columns = COLUMNS[benchmark]
    lines: list[Line] = [("model", *columns)]
    for model, values in published(benchmark).items():
        lines.append((model, *(f"{value:.1f}" for value in values)))
    lines.append((name, *(_cell(own, column, columns, scale) for column in columns)))
    return lines


def caveats_of(benchmark: str, own: Iterable[str] = ()) -> list[str]:
    """Returns what a reader of the published figures must know, and the caveats of the benchmark itself."""
    return list(dict.fromkeys([*CAVEATS.get(benchmark, ()), *own]))


def _cell(own: Mapping[str, Figure], column: str, columns: Sequence[str], scale: float) -> str:
    """Returns one's own figure for a column: by its name, or a detail of the headline; for `all` the headline itself,
    if it has the details of the other columns."""
    if not own:
        return "-"
    headline = next(iter(own))
    word = column.split()[0]
    for name in (column, column.replace(" ", "_"), f"{headline}/{column}", f"{headline}/{word}", word):
        if name in own:
            return f"{scale * own[name].value:.1f}"
    whole = column == "all" and all(f"{headline}/{other}" in own for other in columns if other != "all")
    return f"{scale * own[headline].value:.1f}" if whole else "-"
