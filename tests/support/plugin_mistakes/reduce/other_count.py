"""Gives one row fewer than `tokens` says: rounds the other way."""

import math
from dataclasses import dataclass

from lmmkit.api import ImageReducer, hookimpl

WHERE = "mistake.reduce"
CODE = "plugin/returned"


@dataclass(frozen=True, kw_only=True)
class Mistake(ImageReducer):
    share: float = 0.7

    def tokens(self, dims):
        return math.ceil(dims.image.tokens * self.share)

    def reduce(self, features_INE, connect, module):
        return connect(features_INE[:, : math.floor(features_INE.shape[1] * self.share)])


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
