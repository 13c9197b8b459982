"""An `ablation.json` made by hand, in the format of `lmmkit ablate`."""

from __future__ import annotations

import json
import random
from pathlib import Path

SEEDS = (1, 2, 3)
GAINS = {"base": 0.0, "no-token": -0.1, "both": 0.02, "same": 0.0}


def write_ablation(folder: Path, **changes: object) -> Path:
    """Writes `ablation.json` with a base and three variants at equal steps and at equal time. Returns its folder."""
    (folder / "ablation.json").write_text(json.dumps({**ablation(), **changes}))
    return folder


def ablation() -> dict:
    """Returns the content."""
    return {
        "format": 1, "grid": "tokens", "file": "my grids/tokens.yaml", "base": "recipes/a.yaml", "variants": list(GAINS)[1:], "seeds": list(SEEDS),
        "roots": ["data"], "branch": None, "equal": ["steps", "time"], "interval": "seeds",
        "measures": {"accuracy": "answers.accuracy", "loss": "terms.next_token"},
        "arms": [_arm(name, equal) for equal in ("steps", "time") for name in GAINS],
    }  # fmt: skip


def _arm(name: str, equal: str) -> dict:
    shift = GAINS[name]
    changed = (
        []
        if name in ("base", "same")
        else [{"key": "plugins.x", "class": "mathematics", "base": "(absent)", "here": {"a": 1}}]
    )
    cost = {"cpu_seconds": 60.0 * (1 + abs(shift)), "wall_seconds": 80.0, "tokens": 1_000_000, "steps": 500}
    return {
        "variant": name, "equal": equal, "changes": changed, "steps": {"finetune": 500}, "cost": cost,
        "runs": [{"key": "k", "folder": f"store/{name}-{seed}", "seed": seed, "root": "data", "branch": None, "stages": {}, "cost": cost} for seed in SEEDS],
        "measures": {"accuracy": _measured(name, 0.6 + shift, shift), "loss": _measured(name, 2.0 - shift, -shift)},
        "same_results_as": ["base"] if name == "same" else [],
    }  # fmt: skip


def _measured(name: str, mean: float, shift: float) -> dict:
    rng = random.Random(name)
    values = [
        {"seed": seed, "root": "data", "branch": None, "value": mean + rng.uniform(-0.02, 0.02)}
        for seed in SEEDS
    ]
    difference = None
    if name != "base":
        p = 0.004 if abs(shift) > 0.05 else 0.7
        difference = {
            "value": shift, "low": shift - 0.03, "high": shift + 0.03, "n": 3, "p": p, "p_holm": p, "over": "seeds",
            "pairs": [{"root": "data", "seed": seed, "value": shift} for seed in SEEDS],
        }  # fmt: skip
    return {
        "values": values,
        "value": mean,
        "low": mean - 0.04,
        "high": mean + 0.04,
        "n": 3,
        "difference": difference,
    }
