"""The recipes of `plugin_mistakes/`: each file has one mistake, and the place where it must be reported.

In a file `WHERE` is the instance and method of the problem, `CODE` its code. `READER` is another component of the
file that the recipe uses too. With `DATA` some records have no image. With `SECOND` only a second process shows it.
"""

from __future__ import annotations

import ast
from pathlib import Path

from tests.conftest import MODEL

FOLDER = Path(__file__).parent / "plugin_mistakes"
MISTAKES = sorted(FOLDER.rglob("*.py"))
NO_TERMS = {"TokenStrategy", "ExtraView", "TokenWeight", "ImageReducer"}
STAGE = """
stages:
  only:
    data:   {{captions: 1.0, questions: 1.0}}
    batch:  {{samples: 4}}
    length: {{steps: 4}}
    train:  {{connector: {{}}, plugins: {{}}}}
    optim:  {{lr: 1.0e-3}}
    losses: {{next_token: {{weight: 1.0{by}}}{losses}}}
"""


def constants(path: Path) -> dict[str, str]:
    """Returns the texts that a file assigns to names in capitals."""
    assigned = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Assign)]
    found = {node.targets[0].id: node.value for node in assigned if isinstance(node.targets[0], ast.Name)}
    return {name: value.value for name, value in found.items() if isinstance(value, ast.Constant)}


def recipe_text(path: Path) -> str:
    """Returns a recipe with the component `mistake` of a file, and its `reader` if it has one."""
    of = constants(path)
    names = ["mistake", *([of["READER"]] if "READER" in of else [])]
    kinds = {name: kind(path, name) for name in names}
    terms = [name for name in names if kinds[name] not in NO_TERMS]
    by = ", by: [mistake]" if kinds["mistake"] == "TokenWeight" else ""
    reduce = ", reduce: mistake" if kinds["mistake"] == "ImageReducer" else ""
    plugins = "".join(f"  {name}: {{use: '{path}:{name}'}}\n" for name in names)
    return (
        MODEL.replace("{kind: mlp2x_gelu}", f"{{kind: mlp2x_gelu{reduce}}}")
        + f"plugins:\n{plugins}"
        + STAGE.format(losses="".join(f", {name}: 0.1" for name in terms), by=by)
    )


def kind(path: Path, name: str) -> str:
    """Returns the class that the component inherits from; empty if the file has no class of its name."""
    classes = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
    bases = {
        node.name.lower(): [base.id for base in node.bases if isinstance(base, ast.Name)] for node in classes
    }
    return next(iter(bases.get(name, [])), "")
