"""Our templates in the words of transformers: what an export says in `chat_template.jinja`.

A message's content is a text, or a list of items of type `image` and `text`; images stand first.
"""

from __future__ import annotations

from lmmkit.data.chat_templates import FRAMES, VICUNA_SYSTEM, Frame
from lmmkit.weights.export.export_model import IMAGE

FILE = "chat_template.jinja"

# What a message says. `between` stands behind an image.
CONTENT = """
{%- macro said(content) -%}
{%- if content is string -%}{{ content }}{%- else -%}
{%- set words = content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join -%}
{%- set images = content | selectattr('type', 'equalto', 'image') | list | length -%}
{{- ([IMAGE] * images + ([words] if words else [])) | join(BETWEEN) -}}
{%- endif -%}
{%- endmacro -%}"""
VICUNA = """
{{- START + (said(messages[0].content) if messages[0].role == 'system' else SYSTEM) -}}
{%- for message in messages -%}
{%- if message.role == 'assistant' -%}{{ ' ' + said(message.content) + eos_token }}
{%- elif message.role == 'user' -%}
{{- (' ' if loop.first or loop.previtem.role == 'system' else '') + 'USER: ' + said(message.content) + ' ASSISTANT:' -}}
{%- endif -%}
{%- endfor -%}"""
FRAMED = """
{{- START -}}
{%- for message in messages -%}
{%- if loop.first and SYSTEM and message.role != 'system' -%}
{{- BEFORE + 'system' + BEHIND + SYSTEM + CLOSE -}}
{%- endif -%}
{{- BEFORE + message.role + BEHIND + said(message.content) + CLOSE -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ BEFORE + 'assistant' + BEHIND }}{%- endif -%}"""


def jinja(template: str, *, bos: str, prefixed: bool) -> str | None:
    """The template `template` with an image's placeholder; None for `plain`, which is no conversation.

    Args:
        template: of `data.chat.TEMPLATES`.
        bos: what begins a sequence; empty where nothing does.
        prefixed: whether a text that stands alone begins with a space piece, which transformers
            leaves out behind a control token: LLaVA-1.5 was trained to find one behind an image.
    """
    if template in FRAMES:
        return _filled(CONTENT + FRAMED, **_frame(FRAMES[template]), BETWEEN="\n")
    if template == "plain":
        return None
    space = " " if prefixed else ""
    start = bos + space if bos else ""
    return _filled(CONTENT + VICUNA, START=start, SYSTEM=VICUNA_SYSTEM, BETWEEN=f"{space}\n")


def _frame(frame: Frame) -> dict[str, str]:
    before, behind = frame.head
    return {
        "START": frame.start, "BEFORE": before, "BEHIND": behind + frame.open, "SYSTEM": frame.system,
        "CLOSE": frame.close + frame.gap,
    }  # fmt: skip


def _filled(text: str, **words: str) -> str:
    """Constants as assignments before the text, quoted as Jinja reads them."""
    quoted = {name: repr(word) for name, word in {**words, "IMAGE": IMAGE}.items()}
    return "".join(f"{{%- set {name} = {word} -%}}\n" for name, word in quoted.items()) + text.lstrip("\n")
