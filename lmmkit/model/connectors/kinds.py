"""The connectors by kind. `ConnectorConfig` in the recipe names the same kinds, and the settings of each."""

from __future__ import annotations

from lmmkit.model.connectors.average_pool import AveragePoolConnector
from lmmkit.model.connectors.connector import Connector, NoConnector
from lmmkit.model.connectors.mlp import LinearConnector, MlpConnector
from lmmkit.model.connectors.pixel_shuffle import PixelShuffleConnector
from lmmkit.model.connectors.resampler import ResamplerConnector
from lmmkit.recipe import ConnectorConfig

CONNECTORS: dict[str, type[Connector]] = {
    "linear": LinearConnector, "mlp2x_gelu": MlpConnector, "none": NoConnector,
    "pixel_shuffle": PixelShuffleConnector, "average_pool": AveragePoolConnector, "resampler": ResamplerConnector,
}  # fmt: skip


def build_connector(asked: ConnectorConfig, n_in: int, n_out: int, grid: tuple[int, int]) -> Connector:
    """Returns the connector of a recipe, from vision width to decoder width, for images of `grid` tokens."""
    return CONNECTORS[asked.kind](n_in, n_out, grid, **asked.settings)


def connector_rows(asked: ConnectorConfig, grid: tuple[int, int]) -> int:
    """Returns the rows of an image whose encoder output is a grid (height, width)."""
    return CONNECTORS[asked.kind].rows(grid, **asked.settings)
