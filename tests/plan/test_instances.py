"""Names of plugin instances that a run could not use."""

from __future__ import annotations

import pytest

from lmmkit.errors import UserError
from lmmkit.plan.instances import build_instances
from tests.conftest import DIRECT


@pytest.mark.parametrize("name", ["keys", "items", "forward", "training", "pop", "named_parameters"])
def test_a_name_that_torch_uses_is_refused(name, tiny):
    recipe = tiny(
        text=DIRECT.replace("guided_loss", name).replace(f"{name}: {{}}", f"{name}: {{use: guided_loss}}")
    )
    with pytest.raises(UserError) as error:
        build_instances(recipe)
    assert [(p.code, p.got) for p in error.value.problems] == [("recipe/name", f"the instance name `{name}`")]


def test_other_names_are_not(tiny):
    text = DIRECT.replace("guided_loss", "looks").replace("looks: {}", "looks: {use: guided_loss}")
    assert "looks" in build_instances(tiny(text=text)).components
