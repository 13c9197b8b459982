"""Numbers the encoder's tokens from 1."""

from dataclasses import dataclass

from lmmkit.api import ImageReducer, hookimpl

WHERE = "mistake.patches"
CODE = "plugin/returned"


@dataclass(frozen=True, kw_only=True)
class Mistake(ImageReducer):
    def tokens(self, dims):
        return dims.image.tokens

    def patches(self, dims):
        return [[row + 1] for row in range(self.tokens(dims))]

    def reduce(self, features_INE, connect, module):
        return connect(features_INE)


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
