"""README keeps its word: its plugin runs, its commands exist, its tree is complete."""

from __future__ import annotations

import importlib.util
import json
import re
import tomllib
from pathlib import Path

import pytest
from typer.main import get_command

from lmmkit.cli import app
from lmmkit.errors import UserError
from lmmkit.plan.prepare import prepare
from lmmkit.recipe import read_text
from lmmkit.training.run import train
from tests.conftest import PLAIN, WEIGHTLESS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = get_command(app)
PAGES = sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "ARCHITECTURE.md", *PAGES]
WITHOUT_COMMANDS = {"CONTRIBUTING.md", "ARCHITECTURE.md", "docs/reliability.md"}


def blocks(language: str) -> list[str]:
    """Returns the fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.fixture
def recipe(scenes, tmp_path):
    """Writes the tiny recipe with README's lines in it, in a folder with README's plugin."""
    (plugin,) = blocks("python")
    plugins, losses = blocks("yaml")
    (tmp_path / "my_loss.py").write_text(plugin)
    text = PLAIN.replace("\nstages:", f"\n{plugins}\nstages:", 1)
    assert text != PLAIN and f"    losses: {WEIGHTLESS}\n" in text
    text = text.replace(f"    losses: {WEIGHTLESS}\n", losses)
    overrides = [f"data.{name}.{key}={scenes / file}" for name, key, file in (
        ("captions", "records", "pretrain.json"), ("captions", "images", "."),
        ("questions", "records", "finetune.json"), ("questions", "images", "."),
    )] + [f"model.tokenizer.from={scenes / 'tokenizer.model'}"]  # fmt: skip
    return read_text(text, name="mine.yaml", overrides=overrides, root=tmp_path)


def test_the_expected_results_are_those_that_the_quickstart_wrote():
    spec = importlib.util.spec_from_file_location("readme_figures", ROOT / "docs" / "readme_figures.py")
    figures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(figures)
    summary = json.loads((ROOT / "docs" / "quickstart.json").read_text(encoding="utf-8"))
    assert figures.written(README, summary) == README, "run `python docs/readme_figures.py`"
    other = json.loads(json.dumps(summary))
    other["recipes"]["direct"]["accuracy"]["value"] += 0.01
    assert (
        figures.written(README, other) != README
        and figures.written(figures.written(README, other), summary) == README
    )


def test_the_first_plugin_is_about_thirty_lines():
    (plugin,) = blocks("python")
    assert len([line for line in plugin.splitlines() if line.strip()]) <= 30


def test_the_first_plugin_runs_and_is_logged(recipe, tmp_path):
    lines = train(recipe, out=tmp_path / "run", trust_files=True).run.read_metrics()
    for line in lines:
        assert 0 <= line["terms/look_enough"] <= 0.3
        assert 0 <= line["terms/look_enough/short"] <= 1 and 0 <= line["chance/look_enough/short"] <= 1
    plain = [line["loss"] - 0.1 * line["terms/look_enough"] for line in lines]
    assert plain == pytest.approx([line["terms/next_token"] for line in lines], rel=1e-5)


def test_the_first_plugin_runs_only_where_files_are_trusted(recipe):
    with pytest.raises(UserError, match="plugin/untrusted-file"):
        prepare(recipe)


def code_of(text: str) -> list[str]:
    """Indented blocks and code spans outside the fenced blocks."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`]+)`", text) + [
        line.strip() for line in text.splitlines() if line.startswith("    ")
    ]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_and_options_named_in_documents_exist(name):
    found = 0
    for code in code_of((ROOT / name).read_text(encoding="utf-8")):
        for part in re.split(r"\s*&&\s*", code):
            words = part.split("   ")[0].split()
            if len(words) < 2 or words[0] != "lmmkit":
                continue
            found += 1
            command = COMMANDS
            for word in words[1:]:
                if not hasattr(command, "commands") or word.startswith("--"):
                    break
                assert word in command.commands, f"`{part}` of {name}"
                command = command.commands[word]
            options = {option for parameter in command.params for option in parameter.opts}
            used = {word for word in words if word.startswith("--")}
            assert used <= options, f"`{part}` of {name}: {used - options}"
    assert found or name in WITHOUT_COMMANDS


def test_every_command_is_named_in_readme():
    commands = COMMANDS.commands  # type: ignore[attr-defined]
    for name, command in commands.items():
        below = getattr(command, "commands", {"": None})
        for word in below:
            assert f"lmmkit {name} {word}".strip() in README, f"{name} {word}"


def test_files_of_tests_named_in_documents_exist():
    there = {path.name for folder in ("tests", "benches") for path in (ROOT / folder).rglob("*.py")}
    for name in DOCUMENTS:
        text = (ROOT / name).read_text(encoding="utf-8")
        paths = re.findall(r"\b(?:tests|benches)/[\w/]+\.py", text)
        assert not [path for path in paths if not (ROOT / path).is_file()], name
        assert set(re.findall(r"\btest_\w+\.py", text)) <= there, name


def test_every_option_is_described_in_a_document():
    """Reads the pages beside the list of codes. An option of many commands is in a table of README."""
    pages = [(ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS if name != "docs/errors.md"]
    described = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", " ".join(pages)))

    def options(command) -> set[str]:
        own = {each for parameter in command.params for each in (*parameter.opts, *parameter.secondary_opts)}
        return own.union(*(options(each) for each in getattr(command, "commands", {}).values()))

    found = {each for each in options(get_command(app)) if each.startswith("-")}
    assert len(found) > 60 and not found - described


def test_every_page_is_listed_in_readme():
    section = README.partition("\n### Documents\n")[2].partition("\n#")[0]
    listed = re.findall(r"^\| \[[\w/]+\.md\]\((docs/\w+\.md)\)", section, re.MULTILINE)
    assert sorted(listed) == PAGES


def test_every_extra_is_listed_in_readme():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    table = README.partition("\n| Extra | For |\n")[2].partition("\n\n")[0]
    listed = re.findall(r"`(\w+)`", " ".join(line.split(" | ")[0] for line in table.splitlines()[1:]))
    assert sorted(listed) == sorted(project["optional-dependencies"])


def tree() -> dict[str, list[str]]:
    """Top-level name -> names below it, of README's annotated tree."""
    section = README.partition("## The tree")[2]
    found: dict[str, list[str]] = {}
    for line in section.splitlines():
        if match := re.match(r"^    (  )?(\S+)  ", line + "  "):
            if match[1]:
                found[list(found)[-1]].append(match[2])
            else:
                found[match[2]] = []
    return found


def test_the_tree_names_only_what_is_there_and_all_of_lmmkit():
    for top, names in tree().items():
        assert (ROOT / top).exists(), top
        for name in names:
            path = ROOT / top / name
            assert path.is_dir() if name.endswith("/") else path.is_file(), f"{top}{name}"
    for top in ("lmmkit/", "plugins/"):
        there = {
            path.name + "/" * path.is_dir()
            for path in (ROOT / top).iterdir()
            if path.name != "__pycache__" and (path.is_dir() or path.suffix == ".py")
        }
        assert there == set(tree()[top]), top


def test_links_and_images_lead_somewhere():
    for name in DOCUMENTS:
        for target in re.findall(r"\]\(([^)]+)\)", (ROOT / name).read_text(encoding="utf-8")):
            if target.startswith("http"):
                continue
            file, _, heading = target.partition("#")
            path = (ROOT / name).parent / file if file else ROOT / name
            assert path.is_file(), f"{target} in {name}"
            titles = (
                re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE) if heading else []
            )
            slugs = [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles]
            assert not heading or heading in slugs, f"{target} in {name}"
