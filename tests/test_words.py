"""Code and documents use plain words: docstrings begin with a verb, and some words are not used at all."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CODE = [
    path
    for folder in ("lmmkit", "plugins", "benches", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path != Path(__file__).resolve()  # it lists the words
]
HISTORY = ("LAB.md", "CHANGELOG.md")  # what was measured under older names
DOCUMENTS = [
    path
    for pattern in (
        "*.md",
        "docs/*.md",
        "recipes/**/*.yaml",
        "lmmkit/**/*.md",
        "lmmkit/**/*.html",
        "lmmkit/report/templates/*",
    )
    for path in sorted(ROOT.glob(pattern))
    if path.name not in HISTORY
]
UNUSED = re.compile(
    r"\b(mend(s|ed|ing)?|anew|told|said|heard|gone on with|whatever|pictures?|eyes?|sees|mutes?|muted|lies"
    r"|stands|speaks?|spoken|nobody)\b",
    re.IGNORECASE,
)
DATA = {("lmmkit/scenes/captions.py", "picture")}  # a question of the drawn data sets, which are fixed
NOT_A_VERB = re.compile(r"(What|The same|As|Of|By|How|Where|Whether|Every|All|A|An|The) ")
LIKE_A_DOCSTRING = re.compile(rf":\s*(#.*)?\s*[rRuU]?[\"']+\s*{NOT_A_VERB.pattern}")


def words(path: Path) -> Iterator[tuple[int, str]]:
    """Yields line and text of the names, strings and comments of a file whose text has one of the words."""
    text = path.read_text()
    for token in tokenize.generate_tokens(io.StringIO(text).readline) if _suspect(text) else ():
        if token.type in (tokenize.NAME, tokenize.STRING, tokenize.COMMENT):
            yield token.start[0], token.string.replace("_", " ")


def _suspect(text: str) -> bool:
    return UNUSED.search(text.replace("_", " ")) is not None


def test_code_uses_plain_words():
    found = {
        (path.relative_to(ROOT).as_posix(), match.group(), line)
        for path in CODE
        for line, text in words(path)
        for match in UNUSED.finditer(text)
    }
    assert not {each for each in found if each[:2] not in DATA}


def test_a_document_uses_plain_words():
    for path in DOCUMENTS:
        lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        assert not [(number, line) for number, line in lines if UNUSED.search(line)], path


def test_docstrings_of_functions_begin_with_a_verb():
    """Parses only the files in which a statement may be such a text."""
    for path in CODE:
        whole = path.read_text()
        for node in ast.walk(ast.parse(whole)) if LIKE_A_DOCSTRING.search(whole) else ():
            if isinstance(node, ast.FunctionDef):
                text = ast.get_docstring(node) or ""
                assert not NOT_A_VERB.match(text), f"{path}:{node.lineno}: {text.splitlines()[0]}"
