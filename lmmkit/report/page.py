"""Renders a page: one HTML file that loads nothing, whose scripts and styles are named by their hashes."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from lmmkit.progress import plural
from lmmkit.report import wording

TEMPLATES = Path(__file__).parent / "templates"
SCRIPTS = {
    "runs": ("shared.js", "base.js", "curves.js", "samples.js"),
    "grid": ("shared.js", "base.js"),
    "data": ("shared.js", "base.js", "data.js"),
}
STYLES = {
    "runs": ("shared.css", "base.css", "sections.css", "narrow.css"),
    "grid": ("shared.css", "base.css", "sections.css", "narrow.css"),
    "data": ("shared.css", "base.css", "narrow.css", "data.css"),
}


@dataclass(frozen=True, kw_only=True)
class Page:
    """Holds a page, and the warnings that are on it."""

    text: str
    warnings: Sequence[str] = ()


def render(kind: str, data: Mapping[str, Any], **values: Any) -> str:
    """Returns a page. `kind`: of template, "runs", "grid" or "data"; `data`: for its scripts."""
    style = "".join(template_text(name) for name in STYLES[kind])
    theme, script = template_text("theme.js"), "".join(template_text(name) for name in SCRIPTS[kind])
    policy = (
        f"default-src 'none'; img-src data:; style-src {source_hash(style)}; "
        f"script-src {source_hash(theme)} {source_hash(script)}; base-uri 'none'; form-action 'none'"
    )
    text = (
        _environment()
        .get_template(f"{kind}.html.j2")
        .render(
            **values, policy=policy, style=Markup(style), theme=Markup(theme), script=Markup(script),
            data=Markup(as_data(data)),
        )
    )  # fmt: skip
    return text.encode("utf-8", "replace").decode()  # half of a pair of surrogates, which no file can hold


def as_data(value: Mapping[str, Any]) -> str:
    """Returns JSON that no HTML parser reads as markup."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def byte_size(pages: Sequence[str]) -> int:
    """Returns the bytes of texts as files have them."""
    return sum(len(page.encode("utf-8", "replace")) for page in pages)


@cache
def template_text(name: str) -> str:
    """Returns a file of `templates/`."""
    return (TEMPLATES / name).read_text(encoding="utf-8")


def source_hash(text: str) -> str:
    """Returns how a content security policy names a style or a script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, autoescape=True, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    made.filters |= {
        "percent": wording.in_percent, "points": wording.in_points, "number": wording.plain_number,
        "signed": wording.signed_number, "place": lambda share: f"{100 * share:.3f}%", "plural": plural,
    }  # fmt: skip
    return made
