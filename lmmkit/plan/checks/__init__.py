"""Checks of a plan: pure functions from recipe, instances and plan to problems."""

from lmmkit.plan.checks.component_checks import faults, settings
from lmmkit.plan.checks.loss_checks import losses
from lmmkit.plan.checks.need_checks import extra_views, needs
from lmmkit.plan.checks.reach_checks import reach
from lmmkit.plan.checks.reducer_checks import reducer
from lmmkit.plan.checks.tile_checks import images_by_shape, native_views, tile_needs

__all__ = [
    "extra_views", "faults", "images_by_shape", "losses", "native_views", "needs", "reach", "reducer", "settings",
    "tile_needs",
]  # fmt: skip
