"""Average pooling beside the pooler and the projector of LLaVA-NeXT-Video in transformers."""

import pytest
import torch
from transformers.models.llava_next_video import LlavaNextVideoConfig
from transformers.models.llava_next_video.modeling_llava_next_video import (
    LlavaNextVideoMultiModalProjector,
    LlavaNextVideoPooler,
)

from lmmkit.model.connectors.average_pool import AveragePoolConnector
from tests.support.hf_weights import scramble


@pytest.mark.parametrize("factor", [2, 3])
def test_rows_are_those_of_transformers(factor):
    config = LlavaNextVideoConfig(
        vision_config={"model_type": "clip_vision_model", "hidden_size": 8, "num_attention_heads": 2, "image_size": 24, "patch_size": 4},
        text_config={"model_type": "llama", "hidden_size": 12, "num_attention_heads": 2},
        spatial_pool_mode="average", spatial_pool_stride=factor, vision_feature_layer=-2,
    )  # fmt: skip
    pooler, projector = LlavaNextVideoPooler(config), LlavaNextVideoMultiModalProjector(config).double()
    scramble(projector, 1)
    ours = AveragePoolConnector(8, 12, (6, 6), factor).double()
    ours.first.load_state_dict(projector.linear_1.state_dict())
    ours.second[1].load_state_dict(projector.linear_2.state_dict())
    x_IND = torch.randn(3, 36, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert ours(x_IND).shape == (3, 36 // factor**2, 12)
    torch.testing.assert_close(ours(x_IND), projector(pooler(x_IND)), rtol=1e-12, atol=1e-12)
