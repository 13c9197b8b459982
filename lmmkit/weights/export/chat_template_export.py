"""Writes lmmkit's chat templates as Jinja for transformers: `chat_template.jinja`.

A message's content is a text, or a list of items of type `image` and `text`. Images have the places that
`data/image_markers.py` gives them.

The token that begins a sequence is not in the template, as in the folders of llava-hf: the tokenizer adds it to the
text that a template gives, and to a prompt written by hand. With the token in the template it would be there twice.
What `tokenizer.apply_chat_template` tokenizes at once has none: transformers adds no token there.
"""

from __future__ import annotations

from lmmkit.data.chat_templates import TEMPLATES, VICUNA_SYSTEM, FramedTemplate

JINJA_FILE = "chat_template.jinja"  # the processor and its tokenizer read it

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
{{- text_of(messages[0].content) if messages[0].role == 'system' else SYSTEM -}}
{%- for message in messages -%}
{%- if message.role == 'assistant' -%}{{ ' ' + text_of(message.content) + eos_token }}
{%- elif message.role == 'user' -%}
{{- (' ' if loop.first or loop.previtem.role == 'system' else '') -}}
{{- 'USER: ' + text_of(message.content) + ' ASSISTANT:' -}}
{%- endif -%}
{%- endfor -%}"""
FRAMED = """
{%- for message in messages -%}
{%- if loop.first and SYSTEM and message.role != 'system' -%}
{{- BEFORE + 'system' + BEHIND + SYSTEM + CLOSE -}}
{%- endif -%}
{{- BEFORE + message.role + BEHIND + text_of(message.content) + CLOSE -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ BEFORE + 'assistant' + BEHIND }}{%- endif -%}"""


def jinja(template: str, *, space: str, image: str, system: str = "") -> str | None:
    """Returns `template` as Jinja, with a placeholder for images; None for `plain`, which has no turns.

    Args:
        template: the name of a chat template.
        space: what to write after a control token so that transformers adds the space piece with which the
            tokenizer begins a separate text. LLaVA-1.5 was trained with one after an image.
        image: the placeholder.
        system: the system prompt; empty for the template's own.
    """
    if template == "plain":
        return None
    if template == "vicuna_v1":
        return _filled(
            CONTENT + VICUNA,
            IMAGE=image,
            SYSTEM=system or VICUNA_SYSTEM,
            BETWEEN=f"{space}\n",
            AFTER=space,
            LAST=space,
        )
    framed = TEMPLATES[template]
    assert isinstance(framed, FramedTemplate)
    return _filled(
        CONTENT + FRAMED, IMAGE=image, **_frame(framed, system), BETWEEN=f"{space}\n", AFTER=space, LAST=""
    )


def _frame(frame: FramedTemplate, system: str) -> dict[str, str]:
    before, behind = frame.head
    return {
        "BEFORE": before, "BEHIND": behind + frame.open, "SYSTEM": system or frame.system,
        "CLOSE": frame.end + frame.gap,
    }  # fmt: skip


def _filled(text: str, **words: str) -> str:
    """Returns `text` with Jinja assignments of the constants, in quotes, before it."""
    quoted = {name: repr(word) for name, word in words.items()}
    return "".join(f"{{%- set {name} = {word} -%}}\n" for name, word in quoted.items()) + text.lstrip("\n")
