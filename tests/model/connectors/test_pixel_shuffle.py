"""Pixel shuffle beside the connectors of Idefics3 and SmolVLM in transformers."""

import pytest
import torch
from torch import nn
from transformers.models.idefics3 import Idefics3Config
from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector
from transformers.models.smolvlm import SmolVLMConfig
from transformers.models.smolvlm.modeling_smolvlm import SmolVLMConnector

from lmmkit.model.connectors.pixel_shuffle import PixelShuffleConnector
from tests.support.hf_weights import scramble


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize(
    ("theirs", "config"), [(Idefics3Connector, Idefics3Config), (SmolVLMConnector, SmolVLMConfig)]
)
def test_rows_are_those_of_transformers(theirs: type[nn.Module], config, factor):
    made = theirs(
        config(
            vision_config={"hidden_size": 8}, text_config={"hidden_size": 12, "num_attention_heads": 2, "model_type": "llama"},
            scale_factor=factor,
        )
    ).double()  # fmt: skip
    scramble(made, 1)
    ours = PixelShuffleConnector(8, 12, (6, 6), factor).double()
    with torch.no_grad():
        ours.first.weight.copy_(made.modality_projection.proj.weight)
    x_IND = torch.randn(3, 36, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert ours(x_IND).shape == (3, 36 // factor**2, 12)
    torch.testing.assert_close(ours(x_IND), made(x_IND), rtol=1e-12, atol=1e-12)
