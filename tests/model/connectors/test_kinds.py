"""Connectors: their kinds, their parameters, and the rows that an image takes."""

from typing import get_args, get_type_hints

import pytest
import torch
import torch.nn.functional as F

from lmmkit.model.connectors.kinds import CONNECTORS
from lmmkit.model.connectors.mlp import LinearConnector, MlpConnector
from lmmkit.recipe import ConnectorConfig
from tests.support.hf_weights import scramble

NAMES = {
    "linear": ["first.weight", "first.bias"],
    "mlp2x_gelu": ["first.weight", "first.bias", "second.1.weight", "second.1.bias"],
    "none": [],
}


def test_the_recipe_names_the_kinds_that_exist_and_no_other_kind_is_built():
    assert get_args(get_type_hints(ConnectorConfig)["kind"]) == tuple(CONNECTORS)
    with pytest.raises(KeyError):
        CONNECTORS["mlp3x_gelu"]


@pytest.mark.parametrize("kind", CONNECTORS)
def test_names_of_parameters_stay(kind):
    """They key the initial values, the checkpoints and the public weights."""
    assert [name for name, _ in CONNECTORS[kind](4, 6).named_parameters()] == NAMES[kind]


@pytest.mark.parametrize("kind", CONNECTORS)
@pytest.mark.parametrize("grid", [(3, 3), (2, 5)])
def test_an_image_takes_as_many_rows_as_the_connector_returns(kind, grid):
    connector = CONNECTORS[kind](4, 6)
    x_IND = torch.randn(2, grid[0] * grid[1], 4)
    assert connector(x_IND).shape == (2, CONNECTORS[kind].rows(grid), 4 if kind == "none" else 6)
    assert (connector(x_IND) is x_IND) == (kind == "none")
    assert connector.rows((0, 0)) == 0


def test_values():
    x_IND = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    linear, mlp = LinearConnector(4, 6), MlpConnector(4, 6)
    for connector in (linear, mlp):
        scramble(connector, 0)
    assert torch.equal(linear(x_IND), F.linear(x_IND, linear.first.weight, linear.first.bias))
    hidden = F.gelu(F.linear(x_IND, mlp.first.weight, mlp.first.bias), approximate="none")
    assert torch.equal(mlp(x_IND), F.linear(hidden, mlp.second[1].weight, mlp.second[1].bias))
