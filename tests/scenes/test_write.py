"""The drawn data set: true answers, a clean split, a low baseline, equal bytes."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
import sentencepiece
from PIL import Image

from lmmkit.errors import UserError
from lmmkit.scenes import SceneReport, write_scenes
from lmmkit.scenes.captions import INSTRUCTIONS, caption
from lmmkit.scenes.draw import RGB, draw, middle
from lmmkit.scenes.questions import TYPES
from lmmkit.scenes.scene import SPLITS, Scene, make_scene
from lmmkit.scenes.tokenizer import FRAME
from lmmkit.scenes.write import describe_scenes

COUNT, HELDOUT = 300, 60
JSON_FILES = ("pretrain.json", "finetune.json", "heldout.json", "heldout_captions.json")


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> SceneReport:
    return write_scenes(tmp_path_factory.mktemp("scenes"), count=COUNT, heldout=HELDOUT)


@pytest.fixture(scope="session")
def rows(report: SceneReport) -> dict[str, list[dict]]:
    return {name: json.loads((report.directory / name).read_text()) for name in JSON_FILES}


def questions_of(row: dict) -> list[tuple[str, str]]:
    values = [turn["value"].replace("<image>", "").strip() for turn in row["conversations"]]
    return list(zip(values[::2], values[1::2], strict=True))


def scene_of(row: dict) -> Scene:
    split, index = Path(row["image"]).with_suffix("").parts[1:]
    return make_scene(0, split, int(index))


def slow_answer(scene: Scene, text: str) -> str:
    """Answers by a plain reading of the English, without knowing how questions are made."""
    words = re.findall(r"[a-z]+", text.lower())
    shapes = {"square", "triangle", "cross", "bar"}
    colours = {"red", "green", "blue", "yellow", "purple"}
    singular = {shape + ("es" if shape == "cross" else "s"): shape for shape in shapes}
    words = [singular.get(word, word) for word in words]
    shape = next((word for word in words if word in shapes), None)
    # "What shape is red?" names a colour; "What colour is the bar?" asks for one.
    colour = next((word for word in words if word in colours), None)
    here = [
        thing
        for thing in scene.things
        if (shape is None or thing.shape == shape) and (colour is None or thing.colour == colour)
    ]
    if "many" in words:
        return ["zero", "one", "two", "three", "four"][len(here)]
    if text.startswith(("Are there", "Do you see")):
        return "yes" if here else "no"
    if "directly" in words:
        (thing,) = here
        x, y = {"left": (-1, 0), "right": (1, 0), "above": (0, -1), "below": (0, 1)}[
            words[words.index("directly") + 1]
        ]
        here = [
            other
            for other in scene.things
            if tuple(b - a for a, b in zip(spot(thing), spot(other), strict=True)) == (x, y)
        ]
        (thing,) = here
        return f"{thing.colour} {thing.shape}"
    place = re.search(r"(top|bottom) (left|right)|centre", text)
    if place:
        here = [thing for thing in scene.things if thing.place == place[0]]
    (thing,) = here  # more than one: the question is ambiguous
    if words[0] == "where":
        return thing.place
    return thing.colour if words[1] == "colour" else thing.shape


def spot(thing) -> tuple[int, int]:
    row, column = thing.place.split()
    return int(column == "right"), int(row == "bottom")


def test_every_answer_is_what_a_plain_reading_of_the_scene_gives(rows):
    for name in ("finetune.json", "heldout.json"):
        for row in rows[name]:
            scene = scene_of(row)
            for text, answer in questions_of(row):
                assert slow_answer(scene, text) == answer, (row["id"], text)


def test_captions_tell_true_things_in_an_order_that_can_be_restored(rows):
    complete = Counter()
    for row in rows["pretrain.json"] + rows["heldout_captions.json"]:
        ((instruction, caption),) = questions_of(row)
        assert instruction in INSTRUCTIONS
        assert 8 <= len(caption.split()) <= 18
        there = {(t.colour, t.shape): t.place for t in scene_of(row).things}
        named = re.findall(r"(red|green|blue|yellow|purple) (\w+)", caption)
        places = re.findall(r"(?:top|bottom) (?:left|right)|centre", caption)
        assert 0 < len(named) == len(places) == len(set(named))
        assert [there[name] for name in named] == places, "each place is beside its name"
        assert named in (sorted(named), [name for name in there if name in named])
        complete[len(named) == len(there)] += 1
    assert complete[True] and complete[False], "some captions leave things out"


def test_the_words_of_a_caption_and_its_scene_leave_one_sentence(rows):
    """Makes all captions a scene can have: no two have the same words."""
    for row in rows["heldout_captions.json"]:
        scene, by_words = scene_of(row), {}
        for seed in range(200):
            sentence = caption(scene, random.Random(seed))
            assert by_words.setdefault(tuple(sorted(sentence.split())), sentence) == sentence


def test_no_heldout_scene_equals_a_training_scene():
    seen = {split: {make_scene(0, split, index).description for index in range(2000)} for split in SPLITS}
    assert not seen["train"] & seen["heldout"]
    assert len(seen["train"]) > 1100


def test_rows_are_llava_rows_and_images_open(report, rows):
    for name, records in rows.items():
        assert len({row["id"] for row in records}) == len(records)
        for row in records:
            turns = row["conversations"]
            chat_models = [turn["from"] for turn in turns]
            assert chat_models == ["human", "gpt"] * (len(turns) // 2)
            first = turns[0]["value"]
            assert sum(turn["value"].count("<image>") for turn in turns) == 1
            assert first.startswith("<image>\n") or first.endswith("\n<image>")
            assert all(turn["value"].strip() for turn in turns)
            assert set(row) - {"type", "scene"} == {"id", "image", "conversations"}, name
    images = {row["image"] for records in rows.values() for row in records}
    on_disk = {
        path.relative_to(report.directory).as_posix() for path in (report.directory / "images").rglob("*.*")
    }
    assert images == on_disk and len(images) == COUNT + HELDOUT
    sizes = set()
    for name in images:
        with Image.open(report.directory / name) as image:
            image.load()
            sizes.add((image.size, image.format))
    assert {kind for _, kind in sizes} == {"JPEG", "PNG"}
    assert len({size for size, _ in sizes}) >= 6


def test_both_markers_and_four_to_six_turns(rows):
    first = Counter(
        row["conversations"][0]["value"].startswith("<image>") for name in JSON_FILES for row in rows[name]
    )
    assert 0.4 < first[True] / first.total() < 0.6
    turns = Counter(len(questions_of(row)) for row in rows["finetune.json"])
    assert set(turns) <= {4, 5, 6} and all(len(questions_of(r)) == 1 for r in rows["heldout.json"])


def test_types_are_even_and_yes_no_questions_few(report, rows):
    asked = Counter(row["type"] for row in rows["heldout.json"])
    assert all(abs(asked[kind] - HELDOUT * 3 / len(TYPES)) <= 1 for kind in TYPES)
    for shares in (report.type_shares, report.heldout_type_shares):
        assert sum(shares.values()) == pytest.approx(1)
        assert max(shares.values()) - min(shares.values()) < 0.08
    for name in ("finetune.json", "heldout.json"):
        answers = Counter(a for row in rows[name] for _, a in questions_of(row))
        assert abs(answers["yes"] - answers["no"]) <= 2
        assert (answers["yes"] + answers["no"]) / answers.total() <= 0.25
    assert report.yes_no_share <= 0.25 and report.heldout_yes_no_share <= 0.25


def test_an_answer_cannot_be_guessed_without_the_image(report, rows):
    by_text, by_type = defaultdict(Counter), defaultdict(Counter)
    kinds = {text: row["type"] for row in rows["heldout.json"] for text, _ in questions_of(row)}
    for row in rows["finetune.json"]:
        for text, answer in questions_of(row):
            by_text[text][answer] += 1
    for split_item in describe_scenes(0, "train", COUNT):
        for question in split_item.questions:
            by_type[question.type][question.answer] += 1
    right = 0
    for row in rows["heldout.json"]:
        ((text, answer),) = questions_of(row)
        counts = by_text.get(text) or by_type[kinds[text]]
        right += answer == min(counts, key=lambda a: (-counts[a], a))
    assert report.majority == pytest.approx(right / len(rows["heldout.json"]))
    assert report.majority < 0.36
    # 30 questions a type here: the small sample's noise is allowed for.
    assert all(v < 0.6 for kind, v in report.majority_by_type.items() if kind != "presence")


def test_one_in_four_presence_negatives_is_near():
    asked = [q for item in describe_scenes(0, "train", 1500) for q in item.questions]
    kinds = Counter(q.kind for q in asked if q.type == "presence")
    assert abs(3 * kinds["presence/near"] - kinds["presence/no"]) <= 6
    assert abs(3 * kinds["presence/yes"] - 4 * kinds["presence/no"]) <= 12
    # Neither one-word nor two-word questions betray their answer.
    short = Counter(q.answer for q in asked if q.type == "presence" and not names_a_pair(q.text))
    assert 0.4 < short["yes"] / short.total() < 0.6


def names_a_pair(text: str) -> bool:
    colour = re.search(r"red|green|blue|yellow|purple", text)
    return bool(colour) and "object" not in text


def test_the_image_shows_the_scene():
    for index in range(40):
        scene = make_scene(0, "train", index)
        image = draw(scene)
        assert image.size == (scene.width, scene.height)
        for thing in scene.things:
            x, y = middle(thing, scene.width, scene.height)
            assert image.getpixel((int(x), int(y))) == RGB[thing.colour]
            assert ("left" in thing.place) == (x < 0.4 * scene.width)
            assert ("top" in thing.place) == (y < 0.4 * scene.height)


def test_the_background_differs_from_tile_to_tile():
    for index in range(20):
        empty = replace(make_scene(0, "train", index), things=())
        small = draw(empty).resize((48, 48), Image.Resampling.BICUBIC)
        tiles = [
            small.crop((x, y, x + 16, y + 16)).reduce(4).tobytes() for y in (0, 16, 32) for x in (0, 16, 32)
        ]
        nearest = min(
            sum(abs(a - b) for a, b in zip(one, two, strict=True)) / len(one)
            for i, one in enumerate(tiles)
            for two in tiles[:i]
        )
        assert nearest > 3  # grey levels


def test_the_tokenizer_is_laid_out_like_llama(report):
    model = sentencepiece.SentencePieceProcessor(model_file=str(report.directory / "tokenizer.model"))
    assert [model.id_to_piece(i) for i in range(3)] == ["<unk>", "<s>", "</s>"]
    assert (model.pad_id(), model.vocab_size()) == (-1, report.vocabulary)
    assert all(model.is_byte(i) for i in range(3, 259))
    for text in (*FRAME, *INSTRUCTIONS, "Zebra \u00e9\n7"):
        assert model.decode(model.encode(text)) == text
        assert model.unk_id() not in model.encode(text)
    for word in ("USER", "ASSISTANT", "purple", "triangle", "bar", "centre", "directly"):
        assert len(model.encode(word)) == 1


def test_equal_seeds_write_equal_bytes_and_other_seeds_do_not(tmp_path):
    calls = []
    digests = []
    for number, seed in enumerate((3, 3, 4)):
        directory = tmp_path / str(number)
        write_scenes(
            directory,
            count=100,
            heldout=20,
            seed=seed,
            progress=lambda done, total: calls.append((done, total)),
        )
        files = sorted(path for path in directory.rglob("*") if path.is_file())
        digest = hashlib.sha256()
        for path in files:
            digest.update(path.relative_to(directory).as_posix().encode() + path.read_bytes())
        digests.append(digest.hexdigest())
    assert digests[0] == digests[1] != digests[2]
    assert calls[:120] == [(done, 120) for done in range(1, 121)]


def test_the_bytes_stay_those_that_figures_and_golden_files_were_made_from(tmp_path):
    write_scenes(tmp_path, count=100, heldout=20, seed=3)
    digests = {
        "pretrain.json": "6e09df1b2ffb47ddde3b2589fed63d2f28306c8cb7663cde4b2a5d8540aaaf82",
        "finetune.json": "ac2cf6f578e6d99e4e37ac188d933346de94d0377e557f2ece946516bd35f159",
        "heldout.json": "65f3daa2403510f58b785c35294fa2222baa29c36ad1b9b25a10c9df8b57aae7",
        "heldout_captions.json": "cb81f08fbab9fb1a91720711d1ac8a3eb0a2f07081b5eba9935e1feb837c4698",
        "README.md": "a4f57acf5775924241fc28c605e2185335b47590d88cac514cc60f6e0e5e9df2",
    }
    found = {name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in digests}
    assert found == digests
    # Files of images also depend on the versions of Pillow and its libraries; pixels do not.
    pixels = b"".join(draw(make_scene(3, "train", index)).tobytes() for index in range(8))
    assert (
        hashlib.sha256(pixels).hexdigest()
        == "82bca0316bf50d4153fa327e5ee45b4e9a8487021bc40ca295986fcedbfc35f1"
    )


def test_a_small_set_is_the_beginning_of_a_large_one():
    assert describe_scenes(0, "train", 20) == describe_scenes(0, "train", 60)[:20]


def test_readme_tells_the_counts_and_the_baseline(report):
    text = (report.directory / "README.md").read_text()
    assert f"{report.majority:.1%}" in text and f"{report.questions} questions" in text
    assert str(report.directory) not in text
    assert all(path.is_file() for path in report.files)


def test_refuses_small_counts_and_used_folders_together(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(UserError) as caught:
        write_scenes(tmp_path, count=5, heldout=0)
    codes = [problem.code for problem in caught.value.problems]
    assert codes == ["scenes/too-few", "scenes/too-few", "scenes/not-empty"]
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(UserError, match="scenes/not-empty"):
        write_scenes(tmp_path / "mine.txt")


def test_few_questions_ask_for_what_the_conversation_already_states():
    asked, known_before = 0, 0
    first = Counter()
    for item in describe_scenes(0, "train", 1000):
        first[item.questions[0].type] += 1
        known: set = set()
        for question in item.questions:
            asked += 1
            known_before += bool(question.asks) and question.asks <= known
            known |= question.states | question.asks
    assert known_before / asked < 0.25
    assert min(first[name] for name in TYPES) > 80  # every type also opens conversations
