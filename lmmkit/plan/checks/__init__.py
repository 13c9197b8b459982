"""Checks of a plan: pure functions from recipe, instances and plan to problems."""

from lmmkit.plan.checks.component_checks import faults, settings
from lmmkit.plan.checks.image_checks import feature_needs, images_by_shape, native_views
from lmmkit.plan.checks.loss_checks import losses
from lmmkit.plan.checks.need_checks import extra_views, needs
from lmmkit.plan.checks.reach_checks import reach
from lmmkit.plan.checks.reducer_checks import reducer

__all__ = [
    "extra_views", "faults", "feature_needs", "images_by_shape", "losses", "native_views", "needs", "reach", "reducer",
    "settings",
]  # fmt: skip
