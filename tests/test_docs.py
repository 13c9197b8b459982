"""The documents are complete: every recipe key, every name a plugin may use, every refusal."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import tomllib
import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import lmmkit.api
from lmmkit.api import components, layout, needs
from lmmkit.errors import all_codes
from lmmkit.recipe import Recipe
from lmmkit.recipe.error_messages import keys_of
from lmmkit.recipe.schema import HIDDEN
from lmmkit.registry import Hooks

ROOT = Path(__file__).resolve().parent.parent
RECIPES, PLUGINS, FORKS, ARCHITECTURE = (
    (ROOT / name).read_text(encoding="utf-8")
    for name in ("docs/recipes.md", "docs/plugins.md", "docs/forks.md", "ARCHITECTURE.md")
)
DERIVED = (
    "model.vision.mlp",
    "model.text.vocab",
    "model.text.kv_heads",
    "model.text.head_size",
)  # 0 means "derive it"
NAMED = {"losses": "TERM"}  # what the names under a section mean; NAME elsewhere


def sections_in(hint: Any) -> Iterator[type]:
    """Yields the dataclasses a hint accepts, below annotations, unions and mappings."""
    if is_dataclass(hint):
        yield hint  # type: ignore[misc]
    elif get_origin(hint) is Annotated:
        yield from sections_in(get_args(hint)[0])
    elif get_origin(hint) in (Union, types.UnionType):
        for option in get_args(hint):
            yield from sections_in(option)


def mapped(hint: Any) -> Any:
    """Returns the type of a mapping's values; None where the hint is no mapping."""
    while get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    origin = get_origin(hint)
    return get_args(hint)[1] if isinstance(origin, type) and issubclass(origin, Mapping) else None


def keys(cls: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, dataclass field) of everything a recipe may say."""
    by_name = {f.name.rstrip("_"): f for f in fields(cls) if f.name not in HIDDEN}
    for key, hint in keys_of(cls).items():
        yield f"{prefix}{key}", by_name[key]
        inner = mapped(hint)
        if inner is None:
            below, at = hint, f"{prefix}{key}."
        else:
            below, at = inner, f"{prefix}{key}.{NAMED.get(key, 'NAME')}."
        for section in sections_in(below):
            yield from keys(section, at)


def rows(text: str) -> list[tuple[str, str, str]]:
    """Returns (key, meaning, default) of the tables of docs/recipes.md."""
    return re.findall(r"^\| `([^`]+)` \| (.+) \| (.+) \|$", text, re.MULTILINE)


def test_every_recipe_key_is_documented_and_no_other():
    known = {key for key, _ in keys(Recipe)}
    own = {"plugins.NAME.use", "plugins.NAME.allow_unreachable"}  # read by the plan, not by the schema
    documented = {key for key, _, _ in rows(RECIPES)}
    assert known | own == documented
    assert len(known) > 100


def test_the_documented_defaults_are_those_of_the_schema():
    documented: dict[str, set[str]] = {}
    for key, _, default in rows(RECIPES):
        documented.setdefault(key, set()).add(default)
    for key, field in keys(Recipe):
        if field.default is MISSING and field.default_factory is MISSING:
            assert "required" in documented[key], key
        elif isinstance(field.default, bool | int | float | str) and key not in DERIVED:
            word = str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
            assert f"`{word}`" in documented[key], (key, word)


def test_the_choices_of_every_key_are_documented():
    documented: dict[str, str] = {}
    for key, meaning, default in rows(RECIPES):
        documented[key] = f"{documented.get(key, '')} {meaning} {default}"
    for key, field in keys(Recipe):
        if get_origin(field.type) is Literal:
            for choice in get_args(field.type):
                assert str(choice) in documented[key], (key, choice)


def test_every_name_of_the_door_is_in_docs_plugins():
    names = set(lmmkit.api.__all__)
    names |= {name for name in vars(Hooks) if name.startswith("lmmkit_")}
    names |= {cls.__name__ for cls in get_args(needs.Need)}
    names |= {field.name for field in fields(needs.Select)}
    for kind in (
        components.Component,
        components.TokenStrategy,
        components.Term,
        components.AuxTask,
        components.Loss,
    ):
        names |= {name for name in vars(kind) if not name.startswith("_") and name != "name"}
    missing = [name for name in sorted(names) if not re.search(rf"\b{name}\b", PLUGINS)]
    assert not missing


def section(title: str) -> str:
    """Returns the text of a section of docs/plugins.md."""
    return PLUGINS.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_every_kind_need_and_place_has_a_row_in_docs_plugins():
    """Reads the first column of the tables. A kind is a component class of `lmmkit.api`."""
    first = r"^\| (`[^|]+`) \|"
    named = {
        title: set(re.findall(r"`(\w+)", " ".join(re.findall(first, section(title), re.MULTILINE))))
        for title in ("Kinds", "Needs", "Places of learned tokens")
    }
    public = {name: getattr(lmmkit.api, name) for name in lmmkit.api.__all__ if name != "hookimpl"}
    kinds = {name for name, cls in public.items() if issubclass(cls, components.Component)}
    assert named["Kinds"] == kinds and len(kinds) > 5
    of_select = {field.name for field in fields(needs.Select)}
    assert named["Needs"] == ({cls.__name__ for cls in get_args(needs.Need)} & set(public)) | of_select
    assert named["Places of learned tokens"] == set(get_args(layout.InsertAt)) | {"Insert"}  # the head


def test_every_refusal_of_door_and_plan_is_in_docs_plugins():
    codes = {code for code in all_codes() if code.startswith(("plan/", "plugin/"))}
    assert len(codes) > 20
    rows = re.findall(r"^\| `((?:plan|plugin)/[a-z-]+)` \| [^|]+ \| [^|]+ \|$", PLUGINS, re.MULTILINE)
    assert codes == set(rows) and len(rows) == len(set(rows))


def test_what_cannot_be_a_plugin_is_in_docs_forks():
    """Reads the bold words of the section, one of them for each idea that other libraries can say."""
    of_section = FORKS.partition("\n## What cannot be a plugin\n")[2].partition("\n## ")[0]
    ideas = re.findall(r"^- \*\*(.+?)\*\*", of_section, re.MULTILINE)
    for words in ("Reinforcement learning", "4-D masks", "middle of the decoder", "fed back", "kind of need"):
        assert any(words in idea for idea in ideas), words


def test_the_map_of_llava_s_words_names_what_exists():
    """Reads the second column of the table in docs/forks.md: names of `lmmkit.api`, and keys of recipes."""
    table = FORKS.partition("### LLaVA's words, and ours\n")[2].partition("\n## ")[0]
    of_lmmkit = "\n".join(line.split(" | ")[1] for line in table.splitlines() if line.startswith("| `"))
    names = re.findall(r"`([A-Z]\w+)", of_lmmkit)
    assert len(set(names)) > 12 and set(names) <= set(lmmkit.api.__all__)
    dotted = re.findall(r"`((?:model|data|stages)\.[\w.]+)`", of_lmmkit)
    known = {key for key, _ in keys(Recipe)}
    assert dotted and all(key in known or f"{key}.kind" in known for key in dotted), dotted


def test_docs_forks_has_the_lines_and_papers_of_each_file_of_the_zoo():
    zoo = {path.name: path.read_text() for path in (ROOT / "plugins" / "lmmkit_zoo").glob("[!_]*.py")}
    table = re.findall(r"^\| `(\w+\.py)` \| [^|]+ \| ([^|]+) \| (\d+) \| [^|]+ \|$", FORKS, re.MULTILINE)
    assert [name for name, _, _ in table] == list(dict.fromkeys(name for name, _, _ in table))
    assert {name: int(lines) for name, _, lines in table} == {
        name: len(text.splitlines()) for name, text in zoo.items()
    }
    for name, papers, _ in table:
        ids = re.findall(r"\d{4}\.\d{5}", papers)
        assert ids and all(f"arXiv {each}" in zoo[name] for each in ids), name


def test_the_code_of_docs_forks_is_that_of_the_file_it_names():
    blocks = re.findall(r"^```python\n(.*?)^```", FORKS, re.MULTILINE | re.DOTALL)
    assert blocks
    assert all(block in (ROOT / "plugins/lmmkit_zoo/viral.py").read_text() for block in blocks)


def test_files_named_in_architecture_exist():
    names = [path.name for path in ROOT.rglob("*.py")]
    for name in re.findall(r"`([\w/]+\.py)`", ARCHITECTURE):
        base = name.rpartition("/")[2]
        assert (ROOT / "lmmkit" / name).is_file() or (ROOT / name).is_file() or base in names, name
    assert len(ARCHITECTURE.splitlines()) <= 150


def test_the_image_is_drawn_by_the_script():
    assert (ROOT / "docs" / "forest.svg").read_text(encoding="utf-8").startswith("<?xml")


def test_the_names_that_the_scripts_import_exist():
    """Matplotlib is an extra, so the scripts are not run; what they import of lmmkit must exist."""
    found = 0
    for path in (ROOT / "docs").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lmmkit"):
                module = import_module(node.module)
                for alias in node.names:
                    found += 1
                    assert hasattr(module, alias.name), f"{path.name}: {node.module}.{alias.name}"
    assert found >= 5


def test_the_package_needs_no_matplotlib():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert not any(each.startswith("matplotlib") for each in project["dependencies"])
    assert any(each.startswith("matplotlib") for each in project["optional-dependencies"]["docs"])
    for path in (ROOT / "lmmkit").rglob("*.py"):
        assert "matplotlib" not in path.read_text(encoding="utf-8"), path


def script(name: str):
    """Returns a script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_image_of_the_miniature_has_every_difference_that_the_grids_wrote():
    plot = script("miniature_plot")
    image = plot.IMAGE.read_text(encoding="utf-8")
    assert plot.description() in image, "run `python docs/miniature_plot.py`"
    lines = {(grid, arm) for group in plot.LINES.values() for grid, arm, _ in group}
    for path in plot.GRIDS.glob("*.json"):
        grid = path.stem.removesuffix("_world1")
        arms = json.loads(path.read_text(encoding="utf-8"))["arms"]
        found = {(grid, arm["variant"]) for arm in arms if arm["measures"]["balanced"]["difference"]}
        assert found <= lines or grid == "blank", "`blank` has the runs of `all_parts`"


def test_the_tables_of_the_miniature_are_those_that_the_grids_wrote():
    figures = script("miniature_figures")
    page = figures.PAGE.read_text(encoding="utf-8")
    assert figures.written(page) == page, "run `python docs/miniature_figures.py`"
    stored = sorted(figures.GRIDS.glob("*.json"))
    assert not any('"/' in path.read_text(encoding="utf-8") for path in stored), "a path of some machine"
    assert stored and all(figures.marks(path.stem)[0] in page for path in stored)
    outcome = json.loads(stored[0].read_text(encoding="utf-8"))
    outcome["arms"][1]["measures"]["balanced"]["value"] += 0.1
    assert figures.table(outcome) not in page
