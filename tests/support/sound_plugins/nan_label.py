"""Marks samples without a score by NaN, and leaves them out."""

from dataclasses import dataclass

from lmmkit.api import HiddenMean, Loss, Select, hookimpl


@dataclass(frozen=True, kw_only=True)
class Mistake(Loss):
    needs = (HiddenMean(Select()),)

    def labels(self, sample, dims):
        return {"score": float("nan") if len(sample.key) % 2 else float(len(sample.turns))}

    def value(self, ctx):
        x, view_N = ctx.by_view(self.needs[0])
        score = ctx.label("score")[view_N]
        return (x.float().mean(-1) - score.nan_to_num()).square().masked_fill(score.isnan(), 0.0).sum()


@hookimpl
def lmmkit_components():
    return {"mistake": Mistake}
