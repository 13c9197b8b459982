"""The calls of lmmkit into components: each method with the guard, and with a check of what it returns.

Everything that calls a component calls it here, so a fault of a plugin names instance, method, file and line
in a check, in training, in data workers and in evaluation. Each call raises `UserError` for an exception of the
plugin and for a result of a wrong form; an exception that is a fault of the machine, such as too little memory,
is raised as it is. The calls are in a file for each kind of component
(`term_calls`, `view_calls`, ...); `guard` reports exceptions, `forms`, `devices` and `source` find other faults.
"""

from lmmkit.plugin_calls.module_calls import check, modules, reset
from lmmkit.plugin_calls.reducer_calls import patches, reduce, reducer_rows
from lmmkit.plugin_calls.term_calls import (
    chance,
    count,
    embed,
    images,
    labels,
    losses_of_rows,
    metrics,
    needs,
    step_value,
    value,
)
from lmmkit.plugin_calls.token_calls import edit, provides, tokens
from lmmkit.plugin_calls.view_calls import edited, puzzles, score, text_puzzle, views
from lmmkit.plugin_calls.weight_calls import has_spans, has_weigh, spans, weigh, wrong_weights

__all__ = [
    "chance",
    "check",
    "count",
    "edit",
    "edited",
    "embed",
    "has_spans",
    "has_weigh",
    "images",
    "labels",
    "losses_of_rows",
    "metrics",
    "modules",
    "needs",
    "patches",
    "provides",
    "puzzles",
    "reduce",
    "reducer_rows",
    "reset",
    "score",
    "spans",
    "step_value",
    "text_puzzle",
    "tokens",
    "value",
    "views",
    "weigh",
    "wrong_weights",
]
