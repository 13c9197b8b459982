"""A script that trains with data workers outside of a `__main__` guard is refused before it starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
START = """
import sys
from types import SimpleNamespace as Recipe
from lmmkit.errors import UserError
from lmmkit.training.main_guard import check_main_guard

def main(workers):
    try:
        check_main_guard(Recipe(speed=Recipe(workers=workers)))
        print("may run")
    except UserError as error:
        print(error)
"""
UNGUARDED = {
    "a call": "main(2)",
    "in a block": "for _ in range(1):\n    main(2)",
    "in a thread": "import threading\nt = threading.Thread(target=main, args=(2,)); t.start(); t.join()",
    "another condition": "if len(sys.argv) < 9:\n    main(2)",
}
GUARDED = {
    "a guard": 'if __name__ == "__main__":\n    main(2)',
    "turned round": 'if "__main__" == __name__ and True:\n    x = 1\n    main(2)',
    "no workers": "main(0)",
}


def output(*command):
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, cwd=ROOT, check=False, timeout=120
    )
    assert not done.returncode, done.stderr
    return done.stdout


@pytest.mark.parametrize("end", UNGUARDED.values(), ids=UNGUARDED)
def test_a_script_without_a_guard_is_refused(tmp_path, end):
    script = tmp_path / "script.py"
    script.write_text(START + end + "\n")
    text = output(script)
    assert "train/no-main-guard" in text and f"{script}:" in text and "speed.workers: 2" in text


@pytest.mark.parametrize("end", GUARDED.values(), ids=GUARDED)
def test_a_script_with_a_guard_may_run(tmp_path, end):
    script = tmp_path / "script.py"
    script.write_text(START + end + "\n")
    assert output(script) == "may run\n"


def test_what_workers_do_not_import_needs_no_guard(tmp_path):
    assert output("-c", START + "main(2)") == "may run\n"
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(START + "main(2)\n")
    code = f"import sys, runpy; sys.path.insert(0, {str(tmp_path)!r}); runpy.run_module('package', run_name='__main__')"
    assert output("-c", code) == "may run\n"


def test_train_refuses_such_a_script_before_it_writes_anything(tmp_path, scenes):
    from tests.conftest import PLAIN

    (tmp_path / "mine.yaml").write_text(PLAIN)
    script = tmp_path / "script.py"
    script.write_text(
        "import lmmkit\n"
        f"recipe = lmmkit.read_recipe('{tmp_path / 'mine.yaml'}', overrides=['speed.workers=2'], root='{scenes}')\n"
        f"lmmkit.train(recipe, out='{tmp_path / 'run'}')\n"
    )
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, cwd=ROOT, check=False, timeout=300
    )
    assert done.returncode == 1 and f"{script}:3" in done.stderr and "train/no-main-guard" in done.stderr
    assert done.stderr.count("Traceback") == 1 and not (tmp_path / "run").exists()
