"""Every key broken in every way gives a problem with its line, never a traceback."""

import copy
import dataclasses
import pickle

import pytest

from lmmkit.errors import UserError
from lmmkit.recipe import Recipe, Weight, from_mapping, read_text, to_mapping
from lmmkit.recipe.error_messages import NO_TYPE, child, keys_of, plain_hint
from lmmkit.recipe.write import yaml_text
from lmmkit.recipe.yaml_tree import parse
from tests.support.example_recipes import PRETRAINED, SCRATCH

WRONG = {
    "null": None,
    "nan": float("nan"),
    "infinite": float("inf"),
    "huge": 10**400,
    "object": object(),
    "deep": [[[[]]]],
}
HOW = [*WRONG, "typo", "opposite"]  # the key misspelt; a text for all but texts, else a section
# names that their writer chose: another spelling is a mistake only where something refers to it
FREE = ("plugins", "data", "stages", "evaluate.tasks")


def schema_keys(text):
    """Dotted key -> whether it is a section, for every key of the schema that `text` holds."""

    def walk(raw, hint, key):
        for name, value in raw.items():
            below = child(hint, raw, name)
            if below is NO_TYPE or key.startswith("plugins."):
                continue
            at = f"{key}.{name}" if key else name
            yield at, isinstance(value, dict)
            if isinstance(value, dict):
                yield from walk(value, below, at)

    return dict(walk(parse(text, "r.yaml").value, Recipe, ""))


def required_keys(cls):
    """Returns the YAML keys of a section that have no default."""
    none = dataclasses.MISSING
    absent = [f for f in dataclasses.fields(cls) if f.default is none is f.default_factory]
    return [f.name.rstrip("_") for f in absent]


TREE = parse(SCRATCH, "r.yaml").value
KEYS = schema_keys(SCRATCH)


def broken(keys, how):
    """Returns a copy of the example in which `keys` are wrong, and the keys that problems should name."""
    raw, named = copy.deepcopy(TREE), []
    for key in keys:
        *parents, last = key.split(".")
        at = raw
        for parent in parents:
            at = at[parent]
        if how == "typo":
            at[last + "qq"] = at.pop(last)
            free = key.rpartition(".")[0] in FREE
            named += [] if free else [key + "qq"]
            continue
        if how == "opposite":
            at[last] = {"a": "b"} if isinstance(at[last], str) else "\u00e4"
        else:
            at[last] = WRONG[how]
        named.append(key)
    return raw, named


def problems_of(read, source):
    try:
        read(source)
    except UserError as error:
        for p in error.problems:
            words = f"{p.where} {p.got} {p.expected} {p.hint}"
            assert words.isascii(), p
            assert not any(word in words for word in ("pydantic", "<", "Input ", "NoneType")), p
        return [p.where for p in error.problems]
    return []


@pytest.mark.parametrize("how", HOW)
def test_every_key_broken_alone_is_named(how):
    for key in KEYS:
        raw, named = broken([key], how)
        wheres = problems_of(from_mapping, raw)
        wheres = {where.removesuffix(".0") for where in wheres}  # or its first item
        assert wheres >= set(named), (named, wheres)


@pytest.mark.parametrize("how", [how for how in HOW if how != "object"])
def test_every_value_broken_at_once_is_named_with_its_line(how):
    leaves = [key for key, section in KEYS.items() if not section]
    raw, named = broken(leaves, how)
    text = yaml_text(raw)
    places = parse(text, "r.yaml").places
    wheres = problems_of(lambda text: read_text(text, name="r.yaml"), text)
    wheres += [f"{places[name]} {name}" for name in named if any(f" {name}.0" in w for w in wheres)]
    missing = [name for name in named if f"{places[name]} {name}" not in wheres]
    assert len(named) > 80 and missing == [], wheres


@pytest.mark.parametrize("text", [SCRATCH, PRETRAINED])
def test_a_missing_required_key_is_asked_for(text):
    tree = parse(text, "r.yaml").value
    for key in schema_keys(text):
        raw = copy.deepcopy(tree)
        *parents, last = key.split(".")
        at, hint = raw, Recipe
        for parent in parents:
            hint, at = child(hint, at, parent), at[parent]
        section = plain_hint(hint, at)
        if not dataclasses.is_dataclass(section) or last not in required_keys(section):
            continue
        del at[last]
        with pytest.raises(UserError) as raised:
            from_mapping(raw)
        wheres = [p.where for p in raised.value.problems]
        # without `from`, a section from scratch is meant, whose shapes are then asked for
        parent = key.rpartition(".")[0]
        assert key in wheres or (last == "from" and any(parent in w for w in wheres)), key


def test_numbers_are_strict_and_whole_numbers_will_do():
    recipe = read_text(SCRATCH, overrides=["stages.only.optim.lr=1"])
    lr = recipe.stages["only"].optim.lr
    assert lr == 1.0 and type(lr) is float
    for bad in ("true", "'1'", "1_000", "nan", "1e400", "[1]"):
        with pytest.raises(UserError):
            read_text(SCRATCH, overrides=[f"stages.only.optim.lr={bad}"])
    for key, bad in (("format", "true"), ("format", "1.0"), ("format", "2"), ("seed", "1.0")):
        with pytest.raises(UserError):
            read_text(SCRATCH, overrides=[f"{key}={bad}"])


def test_defaults_are_derived_and_the_rest_is_as_documented():
    raw = parse(SCRATCH, "r.yaml").value
    raw["model"]["vision"] = {"width": 64, "depth": 2, "heads": 4, "patch": 8, "image_size": 64}
    raw["model"]["text"] = {"width": 64, "depth": 2, "heads": 4, "mlp": 96, "context": 128}
    del raw["speed"], raw["output"], raw["numerics"]
    recipe = from_mapping(raw)
    vision, text = recipe.model.vision, recipe.model.text
    assert (vision.mlp, vision.feature_layer, vision.activation) == (256, -2, "quick_gelu")
    assert (text.kv_heads, text.head_size, text.rope_theta) == (4, 16, 1e4)
    assert recipe.speed.threads == 0 and recipe.output.keep == 2
    assert recipe.numerics.compute == "float32"


def test_timm_and_parts_of_a_stage():
    raw = parse(PRETRAINED, "r.yaml").value
    raw["model"]["vision"] = {"timm": "vit_base", "weights": "none", "image_size": 224}
    recipe = from_mapping(raw)
    assert recipe.model.vision.timm == "vit_base" and recipe.model.vision.mean is None
    assert list(recipe.stages["finetune"].train.parts()) == ["connector", "text", "plugins"]


def test_weights():
    ramp = Weight(from_=0.0, to=2.0, over=0.5)
    assert [ramp.at(p) for p in (0.0, 0.25, 0.5, 1.0)] == [0.0, 1.0, 2.0, 2.0]
    assert Weight(from_=1.0, to=0.0).at(0.5) == 0.5
    assert Weight(weight=0.3).at(0.9) == 0.3
    assert Weight(weight=0.0).constant_zero and Weight(from_=0.0, to=0.0).constant_zero
    assert not ramp.constant_zero and not ramp.watch


def test_recipes_are_frozen_pickle_and_know_no_torch(tmp_path):
    recipe = read_text(SCRATCH, root=tmp_path)
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.seed = 3
    again = pickle.loads(pickle.dumps(recipe))
    assert again == recipe and again.path("a/b") == tmp_path / "a/b"
    assert recipe.path("/x") == type(tmp_path)("/x")
    changed = dataclasses.replace(recipe, seed=8)
    assert changed.root == str(tmp_path) and changed.where("seed") == recipe.where("seed")
    assert changed != recipe


def test_every_key_of_the_schema_is_in_an_example():
    # the tables above only break what the examples hold
    named = {*KEYS, *schema_keys(PRETRAINED)}
    recipe = to_mapping(read_text(SCRATCH))
    for section in ("speed", "output", "numerics"):
        known = keys_of(plain_hint(keys_of(Recipe)[section]))
        assert {f"{section}.{key}" for key in known} <= named
    assert set(recipe) == set(keys_of(Recipe))
