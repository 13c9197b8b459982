"""The folder of the demo's model, and a run folder around it."""

from __future__ import annotations

import shutil
from pathlib import Path

from lmmkit.recipe import digest, read_recipe
from lmmkit.runs.files import read_json, write_json_atomic
from lmmkit.runs.run_folder import RunFolder

DEMO_MODEL = Path(__file__).resolve().parent / "model"
ORIGIN = "comes with lmmkit; lmmkit/demo/model/README.md says how it was trained"


def write_demo_run(path: Path, scenes: Path) -> RunFolder:
    """Writes a run folder around a copy of the model, to be evaluated on scenes. It has no log of a training.

    Args:
        path: a folder that does not exist.
        scenes: a data set of drawn scenes.
    """
    run = RunFolder(path)
    config = read_json(DEMO_MODEL / "config.json")
    model = run.model(config["stage"])
    model.mkdir(parents=True)
    for file in DEMO_MODEL.iterdir():
        shutil.copyfile(file, model / file.name)
    shutil.copyfile(DEMO_MODEL / "recipe.yaml", run.resolved)
    facts = {
        "format": 1,
        "plans": {config["stage"]: config["plan"]},
        "plugins": config["plugins"],
        "recipe": digest(read_recipe(run.resolved)),
        "root": str(scenes.resolve()),
        "origin": ORIGIN,
    }
    write_json_atomic(run.run_json, facts)
    return run
