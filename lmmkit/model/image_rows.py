"""What the decoder gets of each image: the connector's rows, or those that a reducer makes with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import cast

import torch
from torch import Tensor, nn

from lmmkit import plugin_calls
from lmmkit.api.components import ImageReducer
from lmmkit.api.model_info import Dims
from lmmkit.model.connectors.connector import Connector

NO_ROWS: Mapping[str, Tensor] = MappingProxyType({})


class ImageRows:
    """Gives each image the rows of the connector. It is no module: it has nothing that is trained or saved."""

    def project(self, features_IND: Tensor, connector: Callable[[Tensor], Tensor]) -> Tensor:
        """Returns the rows of all images, [I, rows, decoder width], from the encoder's output."""
        return connector(features_IND)

    def row_features(self, features_IND: Tensor, connector: Connector) -> Tensor:
        """Returns the encoder's features behind each row, [I, rows, vision width]; see `Connector.row_features`."""
        return connector.row_features(features_IND)

    def learned(self, connector: nn.Module) -> Mapping[str, Tensor]:
        """Returns the learned rows of images, [n, decoder width], by scatter source."""
        return NO_ROWS

    def on_patches(self, weight_N: Tensor, connector: Connector) -> Tensor | None:
        """Returns the weights of an image's rows as weights of its patches, [grid]; None if these are not known."""
        return connector.on_patches(weight_N, connector.grid)


class NewlineRow(nn.Module):
    """Holds the learned row at the end of each line of tiles."""

    def __init__(self, width: int):
        super().__init__()
        self.row = nn.Parameter(torch.empty(width))

    def reset_parameters(self) -> None:
        nn.init.normal_(self.row, std=1 / math.sqrt(len(self.row)))


class TileRows(ImageRows):
    """Gives the rows of images of which some are cut into tiles. The connector has a `NewlineRow` as `newline`."""

    def learned(self, connector: nn.Module) -> Mapping[str, Tensor]:
        return {"newline": cast(NewlineRow, connector.newline).row[None]}


class ReducedRows(ImageRows):
    """Gives each image the rows of a reducer. `module` is the reducer's; the objective has it under `plugins`."""

    def __init__(self, reducer: ImageReducer, module: nn.Module | None, dims: Dims):
        self.reducer, self.module, self.grid = reducer, module, dims.image.grid
        self.shape = (plugin_calls.reducer_rows(reducer, dims), dims.width)
        with torch.device("cpu"):
            self.patch_KM = plugin_calls.patches(reducer, dims)

    def project(self, features_IND: Tensor, connector: Callable[[Tensor], Tensor]) -> Tensor:
        return plugin_calls.reduce(self.reducer, features_IND, connector, self.module, self.shape)

    def row_features(self, features_IND: Tensor, connector: Connector) -> Tensor:
        assert self.patch_KM is not None, "the plan refuses a need for features of rows without fixed patches"
        patch_KM = self.patch_KM.to(features_IND.device, non_blocking=True)
        return features_IND[:, patch_KM.flatten()].unflatten(1, patch_KM.shape).mean(2)

    def on_patches(self, weight_N: Tensor, connector: Connector) -> Tensor | None:
        if self.patch_KM is None:
            return None
        patch_KM = self.patch_KM.to(weight_N.device)
        share_KM = (weight_N[:, None] / patch_KM.shape[1]).expand_as(patch_KM)
        spread_N = weight_N.new_zeros(self.grid[0] * self.grid[1])
        return spread_N.index_add(0, patch_KM.flatten(), share_KM.flatten()).view(self.grid)
