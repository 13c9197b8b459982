"""Writes lmmkit's chat templates as Jinja for transformers: the `chat_template.jinja` of an export.

A message's content is a text, or a list of items of type `image` and `text`. Images come first.
"""

from __future__ import annotations

from lmmkit.data.chat_templates import TEMPLATES, VICUNA_SYSTEM, FramedTemplate
from lmmkit.weights.export.export_model import IMAGE

JINJA_FILE = "chat_template.jinja"

# Macro for a message's content. `BETWEEN` follows each image.
CONTENT = """
{%- macro text_of(content) -%}
{%- if content is string -%}{{ content }}{%- else -%}
{%- set words = content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join -%}
{%- set images = content | selectattr('type', 'equalto', 'image') | list | length -%}
{{- ([IMAGE] * images + ([words] if words else [])) | join(BETWEEN) -}}
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


def jinja(template: str, *, bos: str, prefixed: bool) -> str | None:
    """Returns `template` as Jinja, with a placeholder for images; None for `plain`, which has no turns.

    Args:
        template: the name of a chat template.
        bos: the text of the token that begins a sequence; empty if there is none.
        prefixed: whether the tokenizer begins a separate text with a space piece. transformers omits that
            piece after a control token, but LLaVA-1.5 was trained with one after an image.
    """
    if template == "plain":
        return None
    if template == "vicuna_v1":
        space = " " if prefixed else ""
        start = bos + space if bos else ""
        return _filled(CONTENT + VICUNA, START=start, SYSTEM=VICUNA_SYSTEM, BETWEEN=f"{space}\n")
    framed = TEMPLATES[template]
    assert isinstance(framed, FramedTemplate)
    return _filled(CONTENT + FRAMED, **_frame(framed), BETWEEN="\n")


def _frame(frame: FramedTemplate) -> dict[str, str]:
    before, behind = frame.head
    return {
        "START": frame.start, "BEFORE": before, "BEHIND": behind + frame.open, "SYSTEM": frame.system,
        "CLOSE": frame.end + frame.gap,
    }  # fmt: skip


def _filled(text: str, **words: str) -> str:
    """Returns `text` with Jinja assignments of the constants, in quotes, before it."""
    quoted = {name: repr(word) for name, word in {**words, "IMAGE": IMAGE}.items()}
    return "".join(f"{{%- set {name} = {word} -%}}\n" for name, word in quoted.items()) + text.lstrip("\n")
