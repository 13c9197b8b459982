"""docs/errors.md: every code with what is wanted and the mend, as the source words them."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tests.trust.codes import HELPERS, PACKAGE, codes, literals

HEAD = """# Error codes

Every message ends in its code: `error WHERE`, then what was found, what is wanted, how to mend it. All problems are told at once.
Exit code 2 is the input's, 3 the machine's. `...` stands for what is filled in. Written by `LMMKIT_WRITE_ERRORS=1 pytest
tests/trust/test_codes.py`; a test holds it against the source.

| code | wanted | mend |
|---|---|---|
"""
GIVEN = {  # what helpers say by themselves: code or its beginning -> wanted, mend
    "image/broken": ("a whole picture file", ""),
    "image/": ("", "Mend or remove the file, or remove its row."),
    "recipe/out-of-range": ("what docs/recipes.md says of the key", "Change the value."),
    "recipe/wrong-type": ("what docs/recipes.md says of the key", "Change the value."),
    "recipe/unknown-key": ("one of the section's keys", "the nearest name"),
    "recipe/missing-key": ("what docs/recipes.md says of the key", "Add the key."),
    "recipe/null": ("what docs/recipes.md says of the key", "Give a value, or remove the key."),
    "recipe/tag": ("plain YAML without anchors or tags", "Remove the tag."),
    "recipe/anchor": ("plain YAML without anchors or tags", "Write the value out."),
    "records/path": ("a file below `images`", "Write the path relative to `images`."),
    "records/json": ("JSON", "Mend the row."),
    "records/file": ("JSON or JSONL in UTF-8", "Mend `records`."),
    "run/cannot-write": ("a folder that can be written to, on a file system with locks", "Free space or change its rights, or name another folder."),
    "checkpoint/other-model": ("type and shape of this run's model", ""),
    "checkpoint/schema": ("the schema of this lmmkit", "Use the lmmkit that wrote it."),
    "export/format": ("a model that the format can say", ""),
    "model/format": ("the format of this lmmkit's model folders", ""),
    "plugin/bad-value": ("a value of the setting's type", ""),
    "recipe/file": ("a recipe file in UTF-8, at most 1 MB", "Check path and rights."),
    "recipe/set": ("`--set KEY=VALUE` of a key there is", "Write dots between keys, then `=`."),
    "weights/config": ("a value that lmmkit carries out", "Mend the file, or fetch the folder anew."),
    "weights/missing": ("all tensors of its config", "Fetch the folder anew, or mend its config.json."),
    "weights/extra": ("no others", "Fetch the folder anew, or mend its config.json."),
    "weights/shape": ("the shapes of its config", "Fetch the folder anew, or mend its config.json."),
    "weights/dtype": ("float tensors", "Fetch the folder anew, or mend its config.json."),
}  # fmt: skip


def text() -> str:
    """The whole document."""
    said = words()
    rows = []
    for code in sorted(codes()[0]):
        wanted, mend = said.get(code, ("", ""))
        for beginning, (other, another) in GIVEN.items():
            if code == beginning or (beginning.endswith("/") and code.startswith(beginning)):
                wanted, mend = other or wanted, another or mend
        rows.append(f"| `{code}` | {_cell(wanted)} | {_cell(mend)} |")
    return HEAD + "\n".join(rows) + "\n"


def words() -> dict[str, tuple[str, str]]:
    """code -> (wanted, mend) as far as they stand where the problem is made."""
    found: dict[str, tuple[str, str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        file = str(path.relative_to(PACKAGE))
        tree = ast.parse(path.read_text())
        for function in ast.walk(tree):
            if not isinstance(function, ast.FunctionDef):
                continue
            for node in ast.walk(function):
                for code, wanted, mend in _said(node, file, function) if isinstance(node, ast.Call) else ():
                    if sum(map(bool, (wanted, mend))) > sum(map(bool, found.get(code, ("", "")))):
                        found[code] = wanted, mend
    return found


def _said(node: ast.Call, file: str, function: ast.FunctionDef) -> Iterator[tuple[str, str, str]]:
    name = ast.unparse(node.func).rpartition(".")[2]
    keys = {k.arg: k.value for k in node.keywords}
    args = [*node.args, *(keys[k] for k in ("code", "where", "got", "want", "mend") if k in keys)]
    kinds = [("Problem", 0, "")] + [(h, at, f"{before}/") for h, at, before in HELPERS.get(file, ())]
    for helper, at, before in kinds:
        if name == helper and len(args) > at + 2:
            mend = args[-1] if name != "refuse" else args[4] if len(args) > 4 else args[-1]
            wanted = args[-2] if file != "data/images.py" else args[-1]
            for code in literals(args[at]):
                yield before + code, _spelt(wanted, function), _spelt(mend, function)


def _spelt(node: ast.AST, function: ast.FunctionDef) -> str:
    """An expression as a reader sees it: `...` for what is filled in; empty where that is all."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        parts = [str(v.value) if isinstance(v, ast.Constant) else _nearest(v) for v in node.values]
        return " ".join("".join(parts).split())
    if isinstance(node, ast.IfExp):
        return _spelt(node.body, function)
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "did_you_mean":
        return "the nearest name, or all there are"
    if isinstance(node, ast.Name):
        before = [(line, value) for line, value in _assigned(node.id, function) if line <= node.lineno]
        return _spelt(max(before, key=lambda each: each[0])[1], function) if before else ""
    return ""


def _assigned(name: str, function: ast.FunctionDef) -> Iterator[tuple[int, ast.expr]]:
    """(line, value) of what a name is set to in a function."""
    for other in ast.walk(function):
        if isinstance(other, ast.Assign) and len(other.targets) == 1:
            target, value = other.targets[0], other.value
            if isinstance(target, ast.Name) and target.id == name:
                yield other.lineno, value
            elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                for one, its in zip(target.elts, value.elts, strict=False):
                    if isinstance(one, ast.Name) and one.id == name:
                        yield other.lineno, its


def _nearest(node: ast.AST) -> str:
    return "The nearest name." if "did_you_mean" in ast.unparse(node) else "..."


def _cell(words: str) -> str:
    return words.replace("|", "\\|").replace("\n", " ") or "as the message says"
