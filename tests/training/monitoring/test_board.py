"""TensorBoard gets what a run logs; after a resume it hides what an earlier process logged from there on."""

import time

import numpy as np
import torch

from lmmkit.training.monitoring.board import Board


def test_board(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    image = torch.rand(3, 4, 5, dtype=torch.bfloat16)
    with Board(tmp_path, None) as board:
        for step in range(1, 6):
            board.scalars(step, {"loss": step, "gap": None, "bad": float("nan")})
        board.images(1, {"tensor": image, "array": np.full((1, 2, 2), 3.0)})
    later = time.time() + 1.1
    # event files sort by second, then by a count within the process, as text: 10 before 9
    monkeypatch.setattr(time, "time", lambda: later)
    with Board(tmp_path, purge_step=4) as board:
        board.scalars(4, {"loss": 40})
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert events.Tags()["scalars"] == ["loss"]
    assert sorted(events.Tags()["images"]) == ["array", "tensor"]
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 1), (2, 2), (3, 3), (4, 40)]
