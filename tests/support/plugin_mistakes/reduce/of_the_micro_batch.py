"""Chooses the same tokens for all images: those that vary most among them."""

from dataclasses import dataclass

from lmmkit.api import ImageReducer, hookimpl

WHERE = "mistake.reduce"
CODE = "plugin/not-pure"


@dataclass(frozen=True, kw_only=True)
class Mistake(ImageReducer):
    def tokens(self, dims):
        return dims.image.tokens // 2

    def reduce(self, features_INE, connect, module):
        vary_N = features_INE.detach().float().var(0, unbiased=False).sum(-1)
        best = vary_N.sort(stable=True, descending=True).indices[: len(vary_N) // 2].sort().values
        return connect(features_INE[:, best])


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
