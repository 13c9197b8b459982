"""Files of records are closed with the object that opened them."""

from __future__ import annotations

import gc
import os
import pickle
from pathlib import Path

from lmmkit.data.sources.indexed_records import OPEN_FILES, OpenFiles


def open_below(folder: Path) -> int:
    """Returns how many files below a folder this process has open."""
    links = (f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd"))
    return sum(os.path.lexists(link) and os.readlink(link).startswith(f"{folder}/") for link in links)


def test_files_are_closed_with_their_owner(tmp_path):
    paths = [tmp_path / f"{i}.json" for i in range(OPEN_FILES + 3)]
    for i, path in enumerate(paths):
        path.write_text(f"{i:03}")
    files = OpenFiles(paths)
    for _ in range(2):
        assert [files.read(i, 1, 2)[0] for i in range(len(paths))] == [
            b"%02d" % (i % 100) for i in range(len(paths))
        ]
    assert open_below(tmp_path) == OPEN_FILES
    copy = pickle.loads(pickle.dumps(files))
    assert copy.read(3, 0, 3)[0] == b"003" and open_below(tmp_path) == OPEN_FILES + 1
    del files
    gc.collect()
    assert open_below(tmp_path) == 1 and copy.read(3, 0, 3)[0] == b"003"
    del copy
    gc.collect()
    assert open_below(tmp_path) == 0
