"""A thousand broken recipes: each is accepted or refused with its place; none is a bug, none hangs."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from lmmkit.errors import LmmkitError, UserError
from lmmkit.recipe import read_text, to_mapping
from lmmkit.recipe.shipped import shipped
from tests.support import audit_hooks
from tests.support.hostile_home import RECIPE, home_in, make_base

SHIPPED = sorted(shipped().values())
MORE = """
plugins:
  image_order: {grid: 3, permutations: 5, seed: 0, choose: seed, read: token}
  directed_token: {place: end}
  guided_loss: {alpha: mass}
"""
WHOLE = (
    RECIPE.replace("plugins: {}", MORE.strip())
    .replace("{next_token: 1.0}", "{next_token: {from: 0.5, to: 1.0, over: 0.5}, image_order: 1.0, guided_loss: {weight: 0.0, watch: true}}")
    .replace("text: {}}", "text: {lr: 1.0e-3, lora: {r: 2, alpha: 4, targets: [q, v]}}, plugins: {}}")
    .replace("evaluate:", "evaluate:\n  controls: [blank]")
)  # fmt: skip
WRONG = {
    "a typo": None,  # of the key
    "text": "'nonsense'",
    "null": "null",
    "nan": ".nan",
    "huge": str(10**30),
    "endless": "1e999",
    "negative": "-7",
    "a list": "[1, [2, {a: b}]]",
    "a deep section": "{a: " * 40 + "1" + "}" * 40,
    "a flag": "true",
    "nothing": "''",
}


def text_of(
    value: object, indent: int = 0, change: Mapping[str, tuple[str, str]] = {}, at: str = ""
) -> Iterator[str]:
    """Lines of block YAML; `change`: dotted key -> (another name, another value), the value as it is written."""
    assert isinstance(value, Mapping)
    for key, item in value.items():
        here = f"{at}.{key}" if at else str(key)
        name, written = change.get(here, (key, None))
        if written is None and isinstance(item, Mapping) and item:
            yield f"{' ' * indent}{name}:"
            yield from text_of(item, indent + 2, change, here)
        else:
            yield f"{' ' * indent}{name}: {json.dumps(item) if written is None else written}"


def keys_of(value: object, at: str = "") -> Iterator[str]:
    """Dotted keys, sections among them."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            here = f"{at}.{key}" if at else str(key)
            yield here
            yield from keys_of(item, here)


def schema_mutants() -> Iterator[str]:
    """Yields every key of a recipe that says all it can, wrong in every way."""
    mapping = to_mapping(read_text(WHOLE))
    for key in keys_of(mapping):
        last = key.rpartition(".")[2]
        for word in WRONG.values():
            change = {key: (last[:-1] + "x" + last[-1:], None) if word is None else (last, word)}
            yield "\n".join(text_of(mapping, change=change))  # type: ignore[arg-type]


def random_mutants(draw: random.Random) -> Iterator[str]:
    """Bytes and lines of shipped recipes changed, lost, doubled, swapped, torn off."""
    alphabet = "{}[]:,#&*!|>'\"%@`-? \t\n\0\x07\x1b\u2028\ufeff\u00e9~0123456789.eE_aznull"
    while True:
        text = draw.choice(SHIPPED).read_text()
        for _ in range(draw.randint(1, 4)):
            lines, at = text.splitlines(), draw.randrange(len(text))
            row, other = draw.randrange(len(lines)), draw.randrange(len(lines))
            match draw.randrange(7):
                case 0:
                    text = text[:at] + draw.choice(alphabet) + text[at + 1 :]
                case 1:
                    text = text[:at] + "".join(draw.choices(alphabet, k=draw.randint(1, 9))) + text[at:]
                case 2:
                    text = text[:at] + text[at + draw.randint(1, 30) :]
                case 3:
                    text = "\n".join([*lines[:row], lines[other], *lines[row:]])
                case 4:
                    text = "\n".join(
                        [*lines[:row], " " * draw.randint(0, 9) + lines[row].lstrip(), *lines[row + 1 :]]
                    )
                case 5:
                    text = "\n".join([*lines[:row], *lines[row + 1 :]])
                case _:
                    text = text[: max(at, 1)]
            text = text or "x"
        yield text


def mutants(count: int) -> list[str]:
    """`count` in all, two thirds of them made from the schema."""
    draw, made = random.Random(7), list(schema_mutants())
    kept = draw.sample(made, min(len(made), 2 * count // 3))
    others = random_mutants(draw)
    return kept + [next(others) for _ in range(count - len(kept))]


def read_and_judge(text: str) -> tuple[bool, list[str]]:
    """Returns whether a recipe is accepted, and what is wrong with how it is refused."""
    began, wrong = time.monotonic(), []
    try:
        read_text(text, name="mine.yaml")
        accepted = True
    except UserError as error:
        accepted = False
        wrong = bare(error)
    if time.monotonic() - began > 10:
        wrong.append("it takes more than ten seconds")
    return accepted, wrong


def bare(error: LmmkitError) -> list[str]:
    """Returns problems that lack a place, what was found, what was expected, or a hint."""
    return [
        str(p)
        for p in error.problems
        if not all((p.got.strip(), p.expected.strip(), p.hint.strip(), "/" in p.code))
        or "mine.yaml" not in p.where
    ]


def met(count: int, folder: Path, *, checks: int) -> dict[str, object]:
    """Counts how `count` recipes end; the first `checks` accepted ones also go through `lmmkit check`."""
    base, found = make_base(folder / "base"), {"accepted": 0, "refused": 0, "checked": 0, "bad": []}
    home = home_in(folder / "one", base)
    for text in mutants(count):
        accepted, wrong = read_and_judge(text)
        found["accepted" if accepted else "refused"] += 1
        if accepted and "data/rows.json" in text and found["checked"] < checks:
            home.recipe.write_text(text)
            result = audit_hooks.run(
                ["check", "recipe.yaml"], home.path, read=[home.path], write=[home.path / "out"]
            )
            found["checked"] += 1
            if result.code not in (0, 2) or "Traceback" in result.output:
                wrong.append(f"exit {result.code}: {result.output[-600:]}")
        if wrong:
            found["bad"].append((text[-300:], wrong))
    return found


def test_the_whole_recipe_is_a_good_one_and_has_most_keys():
    keys = set(keys_of(to_mapping(read_text(WHOLE))))
    assert len(keys) > 90
    assert read_text("\n".join(text_of(to_mapping(read_text(WHOLE))))) == read_text(WHOLE)


def test_two_hundred_broken_recipes_are_accepted_or_refused(tmp_path):
    found = met(200, tmp_path, checks=10)
    assert found["accepted"] and found["refused"] > 100 and found["checked"]
    assert not found["bad"]


@pytest.mark.slow
def test_a_thousand_broken_recipes_are_accepted_or_refused(tmp_path):
    found = met(1000, tmp_path, checks=1000)
    print({key: value for key, value in found.items() if key != "bad"}, len(found["bad"]), "bad")
    assert not found["bad"]


def test_every_key_that_is_wrong_is_reported_at_once():
    mapping = to_mapping(read_text(WHOLE))
    leaves = [
        key for key in keys_of(mapping) if not any(other.startswith(f"{key}.") for other in keys_of(mapping))
    ]
    free = (
        "plugins.",
        "data.rows.records",
        "data.rows.images",
    )  # any text will do, or the plugin's own to check
    wrong = {key for key in leaves if not key.startswith(free)}
    change = {key: (key.rpartition(".")[2], "[[], {}]") for key in wrong}
    with pytest.raises(UserError) as error:
        read_text("\n".join(text_of(mapping, change=change)), name="mine.yaml")
    places = {
        p.where.rpartition(" ")[2].removesuffix(".0") for p in error.value.problems
    }  # or a list's first
    assert len(wrong) > 60 and wrong <= places
