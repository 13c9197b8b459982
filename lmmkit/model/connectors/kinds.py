"""The connectors by kind. `ConnectorConfig` in the recipe names the same kinds."""

from __future__ import annotations

from lmmkit.model.connectors.connector import Connector, NoConnector
from lmmkit.model.connectors.mlp import LinearConnector, MlpConnector

CONNECTORS: dict[str, type[Connector]] = {
    "linear": LinearConnector, "mlp2x_gelu": MlpConnector, "none": NoConnector
}  # fmt: skip
