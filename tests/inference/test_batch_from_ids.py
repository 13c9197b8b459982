"""Token ids with padding and placeholders as a batch; refusals of inputs that do not fit together."""

from __future__ import annotations

import pytest
import torch

from lmmkit.inference.batch_from_ids import batch_of_ids

IDS = torch.tensor([[7, 9, 9, 5], [0, 0, 3, 4]])
MASK = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])


def made(ids=IDS, pixels=None, mask=MASK, **changes):
    settings = {"image_token": 9, "image_rows": 2, "vocab": 8} | changes
    return batch_of_ids(ids, pixels, mask, **settings)


def test_padding_is_dropped_and_placeholders_become_image_rows():
    batch, paths = made(pixels=torch.zeros(1, 3, 4, 4))
    assert [path.tolist() for path in paths] == [[0, 1, 2, 3], [4, 5]]
    assert batch.id_T.tolist() == [7, -1, -1, 5, 3, 4]
    (scatter,) = batch.scatters
    assert scatter.source == "vision" and scatter.row_N.tolist() == [1, 2]
    assert batch.forest.see().tolist() == [
        [b <= a and (a < 4) == (b < 4) for b in range(6)] for a in range(6)
    ]


@pytest.mark.parametrize(
    "changes, wrong",
    [
        ({"ids": IDS[0]}, r"input_ids: expected \[B, T\] int64"),
        ({"ids": IDS.int()}, r"input_ids: .*int32"),
        ({"mask": MASK[:, :3]}, r"attention_mask: expected .* \[2, 4\], got \[2, 3\]"),
        ({"mask": MASK * torch.tensor([[1], [0]])}, r"attention_mask: .* padding only"),
        ({"pixels": torch.zeros(2, 3, 4, 4)}, r"expected 2 placeholders an image, got 2 .* and 2 images"),
        ({"vocab": 7, "pixels": torch.zeros(1, 3, 4, 4)}, r"expected ids from 0 to 6, got the token id 7"),
    ],
)
def test_inputs_that_do_not_fit_together_are_refused(changes, wrong):
    with pytest.raises(ValueError, match=wrong):
        made(**changes)
