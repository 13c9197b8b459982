"""The house rules that a machine can check: directions of imports, who may import what."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# A file imports only from lines above its own, and of those only what its bracket names.
FLOORS: dict[str, tuple[str, ...]] = {
    "errors": (),
    "dims": (),
    "local": ("errors",),
    "sample": (),
    "spans": ("sample",),
    "needs": ("spans",),
    "forest": (),
    "calls": ("forest",),
    "batch": ("calls", "forest", "needs"),
    "parts": ("batch", "dims", "local", "needs", "sample", "spans"),
    "ext": ("batch", "dims", "needs", "parts", "sample", "spans"),
    "recipe": ("errors", "recipe"),
    "door": ("errors", "local", "parts"),
    "files": ("errors",),
    "rundir": ("errors", "files"),
    "runlock": ("errors", "files", "rundir"),
    "model": ("batch", "calls", "dims", "errors", "forest", "needs", "model"),
    "data": ("errors", "dims", "files", "sample", "spans", "needs", "calls", "forest", "batch", "parts", "data"),
    "scenes": ("errors", "scenes"),
    "weights": ("errors", "dims", "sample", "files", "model", "data", "weights"),
    "plan": (
        "errors", "dims", "sample", "spans", "needs", "forest", "batch", "parts", "recipe", "door",
        "model", "data", "weights", "plan",
    ),
    "objective": ("batch", "needs", "parts", "model"),
    "assemble": ("errors", "dims", "parts", "recipe", "model", "weights", "plan", "objective"),
    "estimate": ("batch", "model", "recipe", "plan", "objective", "assemble"),
    "kernels": ("batch", "model"),
    "tokens": ("model",),
    "speak": (
        "errors", "sample", "spans", "recipe", "rundir", "model", "data", "weights", "plan", "objective", "assemble",
        "tokens",
    ),
    "convert": ("errors", "recipe", "model", "weights", "plan", "assemble", "speak"),
    "evaluate": ("errors", "dims", "sample", "recipe", "files", "rundir", "data", "plan", "objective", "speak", "evaluate"),
    "training": (
        "errors", "dims", "sample", "spans", "batch", "recipe", "files", "rundir", "runlock", "model", "data", "weights",
        "plan", "objective", "assemble", "estimate", "speak", "evaluate", "training",
    ),
    "report": ("files", "rundir", "report"),
    "commands": ("errors", "sample", "recipe", "door", "rundir", "model", "data", "scenes", "weights", "plan", "assemble", "estimate", "kernels",
                 "speak", "convert", "evaluate", "training", "report", "dims", "commands"),
    "cli": ("commands",),
    "__main__": ("cli",),
    "__init__": ("recipe", "speak", "training"),
}  # fmt: skip
PLUGINS = sorted((ROOT / "plugins").rglob("*.py"))
FILES = sorted((ROOT / "lmmkit").rglob("*.py"))


def room(path: Path) -> str:
    """The floor of a file: its name, or its package's."""
    return path.relative_to(ROOT / "lmmkit").with_suffix("").parts[0]


def imports(path: Path) -> set[str]:
    """Everything a file imports, as dotted names; `from lmmkit import x` is lmmkit.x."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {
                f"{node.module}.{alias.name}" if node.module == "lmmkit" else node.module
                for alias in node.names
            }
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_imports_only_from_floors_it_may(path):
    allowed = FLOORS[room(path)]
    ours = {name.split(".")[1] for name in imports(path) if name.startswith("lmmkit.")}
    assert ours <= set(allowed), f"{path.name} may import {allowed}, not {sorted(ours - set(allowed))}"


def test_no_floor_reaches_up():
    order = list(FLOORS)
    for name, allowed in FLOORS.items():
        above = {other for other in allowed if order.index(other) > order.index(name)}
        assert not above, f"{name} may not reach up to {above}"


@pytest.mark.parametrize("path", PLUGINS, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_plugin_imports_nothing_of_ours_but_ext(path):
    ours = {name for name in imports(path) if name.split(".")[0] == "lmmkit"}
    assert ours <= {"lmmkit.api"}


def test_the_paper_s_parts_are_at_most_two_hundred_lines():
    lines = 0
    for path in PLUGINS:
        tree = ast.parse(path.read_text())
        words = set()
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
                and ast.get_docstring(node) is not None
            ):
                words |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
        text = path.read_text().splitlines()
        lines += sum(1 for i, line in enumerate(text, 1) if line.strip() and i not in words)
    assert lines <= 200, lines


def test_ext_and_the_roof_stay_small():
    import lmmkit
    import lmmkit.api

    assert len(lmmkit.api.__all__) <= 25
    assert len(lmmkit.__all__) <= 15


def test_only_attention_knows_xformers_and_only_weights_knows_families():
    for path in FILES:
        if path.name != "attention.py":
            assert not any(name.split(".")[0] == "xformers" for name in imports(path)), path
        if room(path) != "weights":
            names = {n.id for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Name)}
            names |= {
                n.name
                for n in ast.walk(ast.parse(path.read_text()))
                if isinstance(n, ast.ClassDef | ast.FunctionDef)
            }
            for family in ("llama", "qwen", "siglip", "vicuna"):
                assert not any(name.lower().startswith(family) for name in names - {"VICUNA_SYSTEM"}), (
                    path,
                    family,
                )


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_an_extra_is_imported_only_where_it_is_named(path):
    named = {name.split(".")[0] for node in ast.parse(path.read_text()).body for name in _imported(node)}
    assert not named & {"bitsandbytes", "wandb"}


def _imported(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else []


def test_help_imports_no_torch():
    import subprocess
    import sys

    code = "import sys; from lmmkit.cli import app; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
