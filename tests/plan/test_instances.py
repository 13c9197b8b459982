"""Names of plugin instances that a run could not use."""

from __future__ import annotations

import re

import pytest

from lmmkit.errors import UserError
from lmmkit.plan.instances import build_instances
from tests.conftest import DIRECT


def renamed(name: str) -> str:
    """Returns a recipe with this name for the guided loss."""
    found = re.sub(r"guided_loss: +\{\}", f"{name}: {{use: guided_loss}}", DIRECT)
    return found.replace("guided_loss: 0.5", f"{name}: 0.5")


@pytest.mark.parametrize("name", ["keys", "items", "forward", "training", "pop", "named_parameters"])
def test_a_name_that_torch_uses_is_refused(name, tiny):
    with pytest.raises(UserError) as error:
        build_instances(tiny(text=renamed(name)))
    assert [(p.code, p.got) for p in error.value.problems] == [("recipe/name", f"the instance name `{name}`")]


def test_other_names_are_not(tiny):
    assert "looks" in build_instances(tiny(text=renamed("looks"))).components
