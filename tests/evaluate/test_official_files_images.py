"""Official files: images of a table become files once, named by their content."""

from __future__ import annotations

import os

import pytest

from lmmkit.errors import MachineError
from lmmkit.evaluate.official_files import write_image_once
from tests.support.benchmark_files import image_bytes


def test_an_image_is_written_once_and_found_again(tmp_path):
    red, blue = image_bytes(9), image_bytes(8)
    first = write_image_once(tmp_path / "cache", red)
    assert first is not None and first.read_bytes() == red and first.suffix == ".png"
    os.utime(first, (1, 1))
    assert write_image_once(tmp_path / "cache", red) == first and first.stat().st_mtime == 1, (
        "not written again"
    )
    assert write_image_once(tmp_path / "cache", blue) != first
    assert write_image_once(tmp_path / "cache", image_bytes(kind="JPEG")).suffix == ".jpg"
    assert len(list((tmp_path / "cache").iterdir())) == 3, "no temporary files"


def test_what_is_no_image_is_not_written(tmp_path):
    assert write_image_once(tmp_path / "cache", b"hello") is None
    assert write_image_once(tmp_path / "cache", b"") is None and not (tmp_path / "cache").exists()


def test_a_folder_that_cannot_be_written_is_a_problem_of_the_machine(tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(MachineError) as caught:
        write_image_once(tmp_path / "cache", image_bytes())
    assert str(tmp_path / "cache") in caught.value.problems[0].where
