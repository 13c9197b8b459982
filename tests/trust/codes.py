"""Every error code of the package, found in its source: literals, and those that helpers put together."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent.parent / "lmmkit"
# Where a code is put together: the helper, which of its arguments is the code, what stands before it.
HELPERS: dict[str, tuple[tuple[str, int, str], ...]] = {
    "data/rows.py": (("wrong", 0, "records"),),
    "data/chat.py": (("wrong", 0, "chat"),),
    "data/text.py": (("_problem", 0, "text"),),
    "data/bpe.py": (("_problem", 0, "text"),),
    "data/tiktoken_file.py": (("_problem", 0, "text"),),
    "data/tokenizer.py": (("_problem", 0, "text"),),
    "data/images.py": (("_problem", 0, "image"),),
    "data/order.py": (("wrong", 0, "order"),),
    "recipe/tree.py": (("complain", 0, "recipe"), ("refuse", 0, "recipe")),
    "recipe/checks.py": (("Fault", 1, "recipe"),),
    "recipe/read.py": (("Fault", 1, "recipe"),),
    "recipe/words.py": (("Fault", 1, "recipe"),),
    "door.py": (("_Refused", 0, "plugin"),),
}
# Helpers whose code is decided by an expression: what it may be.
DECIDED = {
    "recipe/words.py": {"recipe/out-of-range", "recipe/wrong-type"},
    "data/images.py": {"image/file", "image/broken"},
    "weights/keys.py": {"weights/missing", "weights/extra", "weights/shape", "weights/dtype"},
}
# `Problem`s whose code is handed on from one of the above.
PASSED_ON = {
    *HELPERS, *DECIDED, "data/records.py", "data/bad_rows.py", "commands/_rows.py",
}  # fmt: skip


def literals(node: ast.AST) -> Iterator[str]:
    """The texts an argument may be: one, or either side of a choice."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from literals(node.body)
        yield from literals(node.orelse)


def codes() -> tuple[dict[str, str], set[str]]:
    """({code: file}, files where a code is no literal and no helper is known)"""
    found: dict[str, str] = {}
    unknown = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        file = str(path.relative_to(PACKAGE))
        for code in DECIDED.get(file, ()):
            found[code] = file
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func).rpartition(".")[2]
            if name == "Problem" and (node.args or any(k.arg for k in node.keywords)):  # not one read back
                code = next((k.value for k in node.keywords if k.arg == "code"), None) or node.args[0]
                said = list(literals(code))
                found |= dict.fromkeys(said, file)
                if not said and file not in PASSED_ON:
                    unknown.add(f"{file}:{node.lineno}")
            for helper, at, before in HELPERS.get(file, ()):
                if name == helper and len(node.args) > at:
                    found |= {f"{before}/{word}": file for word in literals(node.args[at])}
    return found, unknown
