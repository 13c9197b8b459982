"""All rules, by the keys to which they apply."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from lmmkit.errors import Problem
from lmmkit.recipe.rules.data_rules import check_source
from lmmkit.recipe.rules.evaluate_rules import check_controls, check_task
from lmmkit.recipe.rules.model_rules import check_chat, check_fit, check_model, check_text, check_vision
from lmmkit.recipe.rules.names import Names
from lmmkit.recipe.rules.plugin_rules import check_plugins
from lmmkit.recipe.rules.stage_rules import (
    check_length,
    check_losses,
    check_sources,
    check_tokens,
    check_train,
    check_validate,
    check_warmup,
)

RULES: dict[str, Callable[[Any, str, Names], Iterator[Problem]]] = {
    "model.vision": check_vision,
    "model.text": check_text,
    "model": check_model,
    "model.chat": check_chat,
    "model.chat.image_fit": check_fit,
    "plugins": check_plugins,
    "data.*": check_source,
    "data.*.image_fit": check_fit,
    "stages.*.data": check_sources,
    "stages.*.length": check_length,
    "stages.*.train": check_train,
    "stages.*": check_warmup,
    "stages.*.losses": check_losses,
    "stages.*.tokens": check_tokens,
    "stages.*.validate": check_validate,
    "evaluate.tasks.*": check_task,
    "evaluate.controls": check_controls,
}
"""Maps a dotted key to its rule; `*` matches any name."""
