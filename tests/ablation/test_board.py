"""The runs of a grid in TensorBoard's HPARAMS tab, read back as the tab itself reads them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, list_session_groups
from tensorboard.plugins.hparams.backend_context import Context

from lmmkit.ablation.board import write_hparams


def arm(store, name, *, equal="steps", changes=(), seeds=(1, 2), right=0.25):
    """Returns an entry of a summary; seed s has the figure `right` + s."""
    cost = {"cpu_seconds": 10.0, "wall_seconds": None, "tokens": 5, "steps": 6}
    runs = [
        {
            "key": f"{name}{s}",
            "folder": str(store / f"{name}{s}"),
            "seed": s,
            "root": "/d",
            "branch": 0,
            "cost": cost,
        }
        for s in seeds
    ]
    values = [{"seed": s, "root": "/d", "branch": 0, "value": right + s} for s in seeds]
    return {
        "variant": name,
        "equal": equal,
        "changes": changes,
        "runs": runs,
        "measures": {"right": {"values": values}},
    }


def tab(store: Path) -> dict:
    """Returns what the tab shows of a folder: of each trial its hyperparameters and metrics."""
    events = EventMultiplexer()
    events.AddRunsFromDirectory(str(store))
    events.Reload()
    shown = Context(TBContext(data_provider=MultiplexerDataProvider(events, str(store)), logdir=str(store)))
    request = RequestContext()
    experiment = shown.experiment_from_metadata(
        request, "", True, shown.hparams_metadata(request, ""), data_provider_hparams=[]
    )
    asked = api_pb2.ListSessionGroupsRequest(
        start_index=0, slice_size=100, allowed_statuses=[api_pb2.STATUS_SUCCESS]
    )
    for metric in experiment.metric_infos:
        asked.col_params.add().metric.CopyFrom(metric.name)
    for hparam in experiment.hparam_infos:
        asked.col_params.add().hparam = hparam.name
    found = list_session_groups.Handler(request, shown, "", asked).run().session_groups
    return {
        group.name: (
            {name: getattr(value, value.WhichOneof("kind")) for name, value in group.hparams.items()},
            {each.name.tag: pytest.approx(each.value) for each in group.metric_values},
        )
        for group in found
    }


def test_the_tab_shows_what_an_arm_changes_the_seed_and_the_figures(tmp_path):
    changes = (
        {"key": "stages.finetune.optim.lr", "base": 0.1, "here": 0.2},
        {"key": "losses", "base": {"a": 1}, "here": "(absent)"},
    )
    entries = [
        arm(tmp_path, "base"), arm(tmp_path, "x", changes=changes, seeds=(2,), right=0.5),
        arm(tmp_path, "base", equal="time", seeds=(1,)),
    ]  # fmt: skip
    write_hparams("grid", entries)
    write_hparams("grid", entries)  # a second call replaces the files
    found = tab(tmp_path)
    assert set(found) == {"grid base1", "grid base2", "grid x2"}
    same = {"grid": "grid", "root": "/d", "branch": 0}
    of_base = same | {"variant": "base", "stages.finetune.optim.lr": 0.1, "losses": "{a: 1}"}
    figures = {"cost/cpu_seconds": 10.0, "cost/tokens": 5, "cost/steps": 6}
    assert found["grid base1"] == (
        of_base | {"seed": 1, "equal": "steps, time"},
        figures | {"measures/right": 1.25},
    )
    assert found["grid base2"] == (
        of_base | {"seed": 2, "equal": "steps"},
        figures | {"measures/right": 2.25},
    )
    of_x = same | {"variant": "x", "stages.finetune.optim.lr": 0.2, "losses": "(absent)"}
    assert found["grid x2"] == (of_x | {"seed": 2, "equal": "steps"}, figures | {"measures/right": 2.5})


@pytest.mark.parametrize("name", ["g" * 250, "\u00e4" * 125])
def test_the_name_of_a_grid_may_be_as_long_as_that_of_a_file(tmp_path, name):
    write_hparams(name, [arm(tmp_path, "base", seeds=(1,))])
    assert set(tab(tmp_path)) == {f"{name} base1"}


def test_two_grids_that_share_a_run_are_two_trials(tmp_path):
    for grid in ("first", "second"):
        write_hparams(grid, [arm(tmp_path, "base", seeds=(1,))])
    assert set(tab(tmp_path)) == {"first base1", "second base1"}


def test_it_needs_no_torch(tmp_path):
    code = (
        "import sys; from lmmkit.ablation.board import _write; from pathlib import Path; "
        f"_write(Path({str(tmp_path / 'to')!r}), 'n', {{'a': 1}}, {{'b': 2.0}}); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert len(list((tmp_path / "to").iterdir())) == 1
