"""Writes lmmkit's chat templates as Jinja for transformers: the `chat_template.jinja` of an export.

A message's content is a text, or a list of items of type `image` and `text`. Images have the places that
`data/image_markers.py` gives them.
"""

from __future__ import annotations

from lmmkit.data.chat_templates import TEMPLATES, VICUNA_SYSTEM, FramedTemplate
from lmmkit.weights.export.export_model import IMAGE

JINJA_FILE = "chat_template.jinja"

# Macro for a message's content. `BETWEEN` follows each image before the text; `AFTER` comes between an image and
# a text that follows it at its place, `LAST` between an image and the end of the content.
CONTENT = """
{%- macro text_of(content) -%}
{%- if content is string -%}{{ content }}{%- else -%}
{%- set words = content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join -%}
{%- set images = content | selectattr('type', 'equalto', 'image') | list | length -%}
{%- set seen = namespace(text=false, inside=false, image=false) -%}
{%- for item in content -%}
{%- if item.type == 'image' and seen.text -%}{%- set seen.inside = true -%}
{%- elif item.type == 'text' and item.text | trim -%}{%- set seen.text = true -%}
{%- endif -%}
{%- endfor -%}
{%- if seen.inside and not (images == 1 and content[-1].type == 'image') -%}
{%- for item in content if item.type == 'image' or (item.type == 'text' and item.text) -%}
{%- if item.type == 'image' -%}{{ IMAGE + (LAST if loop.last else '') }}
{%- else -%}{{ (AFTER if seen.image else '') + item.text }}
{%- endif -%}
{%- set seen.image = item.type == 'image' -%}
{%- endfor -%}
{%- else -%}
{%- set words = words | trim if images else words -%}
{{- ([IMAGE] * images + ([words] if words else [])) | join(BETWEEN) + (LAST if images and not words else '') -}}
{%- endif -%}
{%- endif -%}
{%- endmacro -%}"""
VICUNA = """
{{- START + (text_of(messages[0].content) if messages[0].role == 'system' else SYSTEM) -}}
{%- for message in messages -%}
{%- if message.role == 'assistant' -%}{{ ' ' + text_of(message.content) + eos_token }}
{%- elif message.role == 'user' -%}
{{- (' ' if loop.first or loop.previtem.role == 'system' else '') -}}
{{- 'USER: ' + text_of(message.content) + ' ASSISTANT:' -}}
{%- endif -%}
{%- endfor -%}"""
FRAMED = """
{{- START -}}
{%- for message in messages -%}
{%- if loop.first and SYSTEM and message.role != 'system' -%}
{{- BEFORE + 'system' + BEHIND + SYSTEM + CLOSE -}}
{%- endif -%}
{{- BEFORE + message.role + BEHIND + text_of(message.content) + CLOSE -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ BEFORE + 'assistant' + BEHIND }}{%- endif -%}"""


def jinja(template: str, *, bos: str, prefixed: bool, system: str = "") -> str | None:
    """Returns `template` as Jinja, with a placeholder for images; None for `plain`, which has no turns.

    Args:
        template: the name of a chat template.
        bos: the text of the token that begins a sequence; empty if there is none.
        prefixed: whether the tokenizer begins a separate text with a space piece. transformers omits that
            piece after a control token, but LLaVA-1.5 was trained with one after an image.
        system: the system prompt; empty for the template's own.
    """
    if template == "plain":
        return None
    if template == "vicuna_v1":
        space = " " if prefixed else ""
        start = bos + space if bos else ""
        return _filled(
            CONTENT + VICUNA, START=start, SYSTEM=system or VICUNA_SYSTEM, BETWEEN=f"{space}\n", AFTER=space,
            LAST=space,
        )  # fmt: skip
    framed = TEMPLATES[template]
    assert isinstance(framed, FramedTemplate)
    after = " " if prefixed else ""
    return _filled(CONTENT + FRAMED, **_frame(framed, system), BETWEEN=f"{after}\n", AFTER=after, LAST="")


def _frame(frame: FramedTemplate, system: str) -> dict[str, str]:
    before, behind = frame.head
    return {
        "START": frame.start, "BEFORE": before, "BEHIND": behind + frame.open, "SYSTEM": system or frame.system,
        "CLOSE": frame.end + frame.gap,
    }  # fmt: skip


def _filled(text: str, **words: str) -> str:
    """Returns `text` with Jinja assignments of the constants, in quotes, before it."""
    quoted = {name: repr(word) for name, word in {**words, "IMAGE": IMAGE}.items()}
    return "".join(f"{{%- set {name} = {word} -%}}\n" for name, word in quoted.items()) + text.lstrip("\n")
