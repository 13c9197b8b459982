"""MMMU: parquet and JSON records, both parsers, guesses from a hash, subjects and domains."""

from __future__ import annotations

import builtins
import json
import re
from collections import Counter
from random import Random

import pytest

from lmmkit.errors import MachineError
from lmmkit.evaluate.benchmarks.benchmark import Item
from lmmkit.evaluate.benchmarks.mmmu import DOMAIN_OF, Mmmu, official_candidates, official_choice
from tests.support.benchmark_files import (
    POINTER,
    figures_of,
    image_bytes,
    problems_of,
    write_images,
    write_lines,
)

MMMU = Mmmu()


def record(subject, number=1, split="validation", **changes):
    row = {
        "id": f"{split}_{subject}_{number}", "question": f"Who painted <image 1> of {subject}?", "options": "['Ann', 'Bo']",
        "explanation": "", "image_1": f"images/{subject}.png", "image_2": None, "img_type": "['Paintings']", "answer": "A",
        "topic_difficulty": "Easy", "question_type": "multiple-choice", "subfield": "x",
    }  # fmt: skip
    return row | changes


def open_(subject, answer, **changes):
    return record(subject, **{"question_type": "open", "options": "[]", "answer": answer} | changes)


def records(split="validation", **first):
    rows = [record(subject, split=split) for subject in sorted(DOMAIN_OF)]
    rows[0] |= first
    return rows


def write_json(folder, rows, split="validation"):
    (folder / f"{split}.json").write_text(json.dumps(rows))
    write_images(folder, [f"images/{subject}.png" for subject in DOMAIN_OF])


def write_parquet(folder, rows):
    import pyarrow
    from pyarrow import parquet

    for i, row in enumerate(rows):
        path = folder / row["id"].split("_", 1)[1].rpartition("_")[0] / f"validation-{i:05d}-of-00032.parquet"
        path.parent.mkdir(exist_ok=True)
        image = {"bytes": image_bytes(i), "path": f"{row['id']}_1.png"}
        parquet.write_table(pyarrow.Table.from_pylist([row | {"image_1": image}]), path)


def load(folder, split="validation"):
    return list(MMMU.items(folder, split=split, cache=folder / "cache"))


def choice(gold, options=("red", "blue", "green", "none"), id_="validation_Art_1"):
    groups = {"domain": "Art and Design", "type": "multiple-choice", "subject": "Art"}
    answers = [gold] if isinstance(gold, str) else list(gold)
    gold = {"type": "multiple-choice", "answers": answers, "options": list(options)}
    return Item(id=id_, prompt="?", gold=gold, cluster=id_, groups=groups)


def question(gold, id_="validation_Math_1"):
    answers = [gold] if isinstance(gold, str) else list(gold)
    groups = {"domain": "Science", "type": "open", "subject": "Math"}
    return Item(
        id=id_,
        prompt="?",
        gold={"type": "open", "answers": answers, "options": []},
        cluster=id_,
        groups=groups,
    )


def test_items_have_the_prompts_of_mmmu_s_script_for_llava(tmp_path):
    rows = records()
    rows[0]["options"] = ["Ann", "Bo"]
    rows[1] = open_("Agriculture", "['$1,000', '1000']")
    write_json(tmp_path, rows)
    first, second = load(tmp_path)[:2]
    assert first.id == "validation_Accounting_1" and first.images == (f"{tmp_path}/images/Accounting.png",)
    assert first.prompt == (
        "Who painted <image 1> of Accounting?\n(A) Ann\n(B) Bo\n\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert (
        second.prompt
        == "Who painted <image 1> of Agriculture?\nAnswer the question using a single word or phrase."
    )
    assert first.gold == {"type": "multiple-choice", "answers": ["A"], "options": ["Ann", "Bo"]}
    assert second.gold["answers"] == ["$1,000", "1000"], "a list in a text"
    assert first.groups == {"domain": "Business", "type": "multiple-choice", "subject": "Accounting"}


def test_parquet_and_json_give_the_same_items(tmp_path):
    rows = [*records(), record("Art", 10), record("Art", 2)]
    (tmp_path / "json").mkdir()
    (tmp_path / "parquet").mkdir()
    write_json(tmp_path / "json", rows)
    write_parquet(tmp_path / "parquet", rows)
    from_json, from_parquet = load(tmp_path / "json"), load(tmp_path / "parquet")
    assert [(i.id, i.prompt, i.gold, i.groups) for i in from_json] == [
        (i.id, i.prompt, i.gold, i.groups) for i in from_parquet
    ]
    assert [i.id for i in from_json if "_Art_" in i.id][:3] == [f"validation_Art_{n}" for n in (1, 2, 10)]
    files = {image for item in from_parquet for image in item.images}
    assert len(files) == 32 and all(f"{tmp_path}/parquet/cache/mmmu/" in image for image in files)
    assert load(tmp_path / "parquet") == from_parquet, "the images are found again"
    write_lines(tmp_path / "json/dev.jsonl", records(split="dev"))
    assert load(tmp_path / "json", "dev")[0].id == "dev_Accounting_1"


def test_the_official_file_of_answers_goes_before_the_records(tmp_path):
    write_json(tmp_path, [*records(), open_("Math", "?", id="validation_Math_2")])
    key = {row["id"]: {"question_type": "multiple-choice", "ground_truth": "B"} for row in records()}
    key["validation_Math_2"] = {"question_type": "short-answer", "ground_truth": ["1", "one"]}
    (tmp_path / "answer_dict_val.json").write_text(json.dumps(key))
    golds = {item.id: item.gold["answers"] for item in load(tmp_path)}
    assert golds["validation_Art_1"] == ["B"] and golds["validation_Math_2"] == ["1", "one"]
    del key["validation_Math_2"]
    key["validation_Art_1"]["question_type"] = "short-answer"
    (tmp_path / "answer_dict_val.json").write_text(json.dumps(key))
    assert {p.code for p in problems_of(lambda: load(tmp_path))} == {
        "benchmarks/other-version",
        "benchmarks/record",
    }


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("A.", "A"), ("(B)", "B"), ("Answer: D", "D"), ("A or B", "B"), ("(A) or (C)", "C"), ("C", "C"), ("(C) not A", "C"),
        ("A. red", None), ("B) blue", None), ("b", None), ("D: none", None), ("", None), ("blue", None),
        ("I think that it must be blue", "B"), ("red or blue, but rather the Red one", "A"), ("I think it is blue", None),
        ("'B'", "B"), ("B?!", "B"), ("E", None), ("A A B A", "A"),
    ],
)  # fmt: skip
def test_vectors_of_the_parser_for_options(answer, letter):
    assert official_choice(answer, ["red", "blue", "green", "none"]) == letter
    verdict = MMMU.verdict(choice(letter or "A"), answer)
    assert (verdict.parsed, verdict.fallback) == (letter, letter is None)
    if letter:
        assert verdict.score == verdict.lenient == 1.0


@pytest.mark.parametrize(
    ("answer", "letter"), [("A. red", "A"), ("B) blue", "B"), ("b", "B"), ("D: none", "D")]
)
def test_the_lenient_parser_reads_where_the_official_one_guesses(answer, letter):
    assert MMMU.verdict(choice(letter), answer).lenient == 1.0
    others = [MMMU.verdict(choice(each), answer).lenient for each in "ABCD" if each != letter]
    assert others == [0.0] * 3


def test_guesses_come_from_the_item_s_id_and_are_uniform():
    items = [choice("A", id_=f"validation_Art_{i}") for i in range(4_000)]
    scores = [MMMU.verdict(item, "no idea").score for item in items]
    assert scores == [MMMU.verdict(item, "none at all").score for item in reversed(items)][::-1], (
        "not by order or answer"
    )
    assert 0.22 < sum(scores) / 4_000 < 0.28
    assert not any(MMMU.verdict(item, "no idea").lenient for item in items)
    figures = figures_of(MMMU, items[:4], ["A", "no idea", "B", ""])
    assert figures["guessed letters"].value == 0.5 and figures["guessed letters"].n == 4


@pytest.mark.parametrize(
    ("gold", "answer", "score", "lenient"),
    [
        ("1.06", "about 1.0600", 1, 1), ("60", "60 degrees", 1, 1), ("MgS", "MgS is formed", 0, 1), ("MgS", "It is MgS.", 1, 1),
        ("1000", "so 1,000 in all", 1, 1), ("0.5", "x = 0.5", 1, 1), ("7", "the result is\nx = 7", 1, 1), ("x", "x", 1, 1),
        ("x", "exact", 0, 0), ("1e3", "1000", 1, 1), ("24/7", "24/7", 1, 1), ("3", "13", 0, 0), ("1.06", "1.0649", 1, 1),
        ("1.06", "1.07", 0, 0), (["1", "one"], "one", 1, 1), ("", "", 1, 1),
    ],
)  # fmt: skip
def test_vectors_of_the_parser_for_open_answers(gold, answer, score, lenient):
    verdict = MMMU.verdict(question(gold), answer)
    assert (verdict.score, verdict.lenient, verdict.fallback) == (score, lenient, False)


def test_the_reference_is_a_constant_letter_and_open_questions_have_none():
    items = [choice("A"), choice(["A", "B"]), choice("B"), question("1")]
    figures = figures_of(MMMU, items, ["A", "A", "A", "1"])
    assert next(iter(figures)) == MMMU.headline == "accuracy"
    assert (figures["accuracy"].value, figures["accuracy"].chance) == (0.75, 0.5)
    assert figures["accuracy/Math"].chance == 0.0 and figures["accuracy/Art and Design"].n == 3
    assert figures["accuracy/open"].value == 1.0 and figures["lenient"].value == 0.75


def letter_by_scanning(answer, options):
    """Returns the letter as the official script finds it, by looking at each place of the text from its end."""
    for mark in ",.!?;:'":
        while answer and answer[0] == mark:
            answer = answer[1:]
        while answer and answer[-1] == mark:
            answer = answer[:-1]
    text = " " + answer + " "
    letters = [chr(ord("A") + i) for i in range(len(options))]
    for form in ("({})", " {} "):
        for end in range(len(text), -1, -1):
            for letter in letters:
                if text[:end].endswith(form.format(letter)):
                    return letter
    if len(text.split()) > 5:
        starts = range(len(text), -1, -1)
        for start in starts:
            for letter, option in zip(letters, options, strict=True):
                if text.lower()[start:].startswith(option.lower()):
                    return letter
    return None


def numbers_by_scanning(text):
    """Returns the numbers in a text by trying every substring: those with commas, with exponents, then simple ones."""

    def word(i):
        return 0 <= i < len(text) and (text[i].isalnum() or text[i] == "_")

    def commas(i, j):
        head, *groups = text[i:j].removeprefix("-").split(",")
        start = i + (text[i] == "-")
        digits = (
            groups
            and head.isdecimal()
            and len(head) <= 3
            and all(g.isdecimal() and len(g) == 3 for g in groups)
        )
        return digits and word(start - 1) != word(start) and word(j - 1) != word(j)

    def scientific(i, j):
        mantissa, mark, power = text[i:j].replace("E", "e").partition("e")
        parts = mantissa.removeprefix("-").split(".")
        exponent = power[1:] if power[:1] in ("+", "-") else power
        return (
            bool(mark)
            and len(parts) <= 2
            and all(part.isdecimal() for part in parts)
            and exponent.isdecimal()
        )

    def ends_well(j):
        rest = text[j:]
        if rest[:1] in ("e", "E"):
            after = rest[2:] if rest[1:2] in ("+", "-") else rest[1:]
            if after[:1].isdecimal():
                return False
        return not (rest[:1] == "," or rest[:1].isdecimal())

    def simple(i, j):
        parts = text[i:j].removeprefix("-").split(".")
        if len(parts) == 2:
            return (parts[0] == "" or parts[0].isdecimal()) and parts[1].isdecimal() and ends_well(j)
        return len(parts) == 1 and parts[0].isdecimal() and word(j - 1) != word(j) and ends_well(j)

    found = []
    for fits in (commas, scientific, simple):
        i = 0
        while i < len(text):
            j = next((j for j in range(len(text), i, -1) if fits(i, j)), None)
            if j is not None:
                found.append(text[i:j])
            i = i + 1 if j is None else j
    return found


def candidates_by_scanning(answer):
    """Returns the candidates as the official script does, with positions instead of splits and patterns."""
    text = answer.strip()
    while text[:1] == ".":
        text = text[1:]
    while text[-1:] == ".":
        text = text[:-1]
    text = text.lower()
    lines, kept = text.split("\n"), []
    words = ["could be", "so", "is", "thus", "therefore", "final", "answer", "result"]
    for i, line in enumerate(lines):
        best = ""
        for mark in [word + " " for word in words] + (["="] if i + 1 == len(lines) else []):
            at = line.rfind(mark)
            if at < 0:
                continue
            tail = line[at + len(mark) :].strip()
            best = tail if best == "" or len(tail) < len(best) else best
        if best != "" and not re.fullmatch(r"[:,.!?;']", best):
            kept.append(best)
    kept = kept or [text]
    out = []
    for each in kept + [number for tail in kept for number in numbers_by_scanning(tail)]:
        each = each.strip()
        try:
            out.append(round(float("".join(each.split(","))), 2))
        except ValueError:
            out += [" " + each, each + " "] if len(each) == 1 else [each]
    return out


WORDS = ["the", "answer", "is", "so", "1,000", "-2.5", "3e2", "12.345,", "=", "x", "red", "blue", "(A)", "B", "C.", "\n", ".", "7%", "be", "could", "1.2.3", "a1", "e5"]  # fmt: skip


def test_ten_thousand_random_answers_score_as_by_the_official_script():
    rng = Random(11)
    letters, rights = Counter(), Counter()
    for i in range(10_000):
        answer = " ".join(rng.choices(WORDS, k=rng.randint(0, 8)))
        if i % 2:
            options = ["red", "blue", "answer", "x"][: rng.randint(2, 4)]
            expected = letter_by_scanning(answer, options)
            assert official_choice(answer, options) == expected, answer
            letters[expected] += 1
        else:
            expected = candidates_by_scanning(answer)
            assert Counter(map(repr, official_candidates(answer))) == Counter(map(repr, expected)), answer
            gold = rng.choice(["1000", "-2.5", "red", "x", "300"])
            normal = float(gold) if gold.lstrip("-")[0].isdigit() else gold
            texts = [" x", "x "] if gold == "x" else [normal]
            right = any(
                c == t if isinstance(t, float) else isinstance(c, str) and t in c
                for c in expected
                for t in texts
            )
            assert MMMU.verdict(question(gold), answer).score == float(right), answer
            rights[right] += 1
    assert min(letters[each] for each in (None, "A", "B", "C")) > 200 and min(rights.values()) > 500


def test_all_that_is_wrong_is_reported_at_once(tmp_path):
    rows = records()
    rows[0] |= {"options": "['a'"}
    rows[1] |= {"answer": "C"}
    rows[2] |= {"question_type": "essay"}
    rows[3] |= {"options": "[]"}
    rows[4] |= {"image_1": "images/none.png"}
    rows[5] |= {"image_1": None}
    rows[6] |= {"question": 1}
    rows[7] |= {"id": "test_Biology_1"}
    rows[8] |= {"answer": [1]}
    write_json(tmp_path, [*rows, record("Sociology")])
    codes = Counter(p.code for p in problems_of(lambda: load(tmp_path)))
    assert codes == {
        "benchmarks/record": 6, "benchmarks/no-images": 2, "benchmarks/other-version": 2, "benchmarks/duplicate-id": 1,
    }  # fmt: skip
    write_json(tmp_path, [row for row in records() if "Art_" not in row["id"]])
    (problem,) = problems_of(lambda: load(tmp_path))
    assert problem.code == "benchmarks/other-version" and problem.got == "no question of Art, Art_Theory"


def test_files_that_are_no_tables_are_refused(tmp_path):
    assert [p.code for p in problems_of(lambda: load(tmp_path))] == ["benchmarks/no-file"] * 2
    for content, code in ((POINTER, "benchmarks/lfs-pointer"), (b"PAR1", "benchmarks/record")):
        (tmp_path / "Art").mkdir(exist_ok=True)
        (tmp_path / "Art/validation-00000-of-00001.parquet").write_bytes(content)
        assert [p.code for p in problems_of(lambda: load(tmp_path))] == [code]


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    (tmp_path / "Art").mkdir()
    (tmp_path / "Art/validation-00000-of-00001.parquet").write_bytes(b"PAR1")
    imports = builtins.__import__

    def without(name, *rest):
        if name.split(".")[0] == "pyarrow":
            raise ImportError(name)
        return imports(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MachineError) as caught:
        load(tmp_path)
    (problem,) = caught.value.problems
    assert problem.code == "benchmarks/not-installed" and "[benchmarks]" in problem.hint


def test_the_answers_of_the_test_split_are_written_for_the_server(tmp_path):
    rows = records("test", answer="?")
    rows = [row | {"answer": "?"} for row in rows]
    rows[3] |= {"question_type": "open", "options": "[]"}
    write_json(tmp_path, rows, "test")
    items = load(tmp_path, "test")
    assert len(items) == 30 and {item.gold["answers"] == [] for item in items} == {True}
    answers = {item.id: "(B) Bo" for item in items} | {
        items[3].id: "It is 36 watts.",
        items[4].id: "who knows",
    }
    verdicts = [MMMU.verdict(item, answers[item.id]) for item in items]
    assert MMMU.status(items) == "pending-server" and MMMU.figures(items, verdicts) == {}
    assert (
        {verdict.score for verdict in verdicts} == {None}
        and verdicts[4].fallback
        and verdicts[0].parsed == "B"
    )
    (upload,) = MMMU.upload(items, answers).items()
    found = json.loads(upload[1])
    assert upload[0] == "mmmu_test.json" and list(found) == [item.id for item in items]
    assert (
        found[items[0].id] == "B" and found[items[3].id] == "It is 36 watts." and found[items[4].id] in "AB"
    )
    problems = problems_of(lambda: MMMU.upload(items, {items[0].id: "A"}))
    assert problems and all(problem.code == "benchmarks/upload-answers" for problem in problems)
    write_json(tmp_path, records())
    known = load(tmp_path)
    assert MMMU.status(known) == "scored" and MMMU.upload(known, {}) == {}
