"""Writes lmmkit's chat templates as Jinja for transformers: `chat_template.jinja`, `chat_template.json`.

A message's content is a text, or a list of items of type `image` and `text`. Images come first.

The token that begins a sequence must be there once. A tokenizer adds none to what its template gives, so the
template has it; a processor's text goes to the tokenizer, which adds it, so the template must not have it.
"""

from __future__ import annotations

from lmmkit.data.chat_templates import TEMPLATES, VICUNA_SYSTEM, FramedTemplate

JINJA_FILE = "chat_template.jinja"
PROCESSOR_FILE = "chat_template.json"  # a processor reads it instead of the other one

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


def jinja(template: str, *, first: str, space: str, image: str) -> str | None:
    """Returns `template` as Jinja, with a placeholder for images; None for `plain`, which has no turns.

    Args:
        template: the name of a chat template.
        first: the text of the token that begins a sequence; empty if there is none, or if the tokenizer adds it.
        space: what to write after a control token so that transformers adds the space piece with which the
            tokenizer begins a separate text. LLaVA-1.5 was trained with one after an image.
        image: the placeholder.
    """
    if template == "plain":
        return None
    if template == "vicuna_v1":
        start = first + space if first else ""
        return _filled(CONTENT + VICUNA, IMAGE=image, START=start, SYSTEM=VICUNA_SYSTEM, BETWEEN=f"{space}\n")
    framed = TEMPLATES[template]
    assert isinstance(framed, FramedTemplate)
    return _filled(CONTENT + FRAMED, IMAGE=image, START=first, **_frame(framed), BETWEEN=f"{space}\n")


def _frame(frame: FramedTemplate) -> dict[str, str]:
    before, behind = frame.head
    return {
        "BEFORE": before, "BEHIND": behind + frame.open, "SYSTEM": frame.system,
        "CLOSE": frame.end + frame.gap,
    }  # fmt: skip


def _filled(text: str, **words: str) -> str:
    """Returns `text` with Jinja assignments of the constants, in quotes, before it."""
    quoted = {name: repr(word) for name, word in words.items()}
    return "".join(f"{{%- set {name} = {word} -%}}\n" for name, word in quoted.items()) + text.lstrip("\n")
