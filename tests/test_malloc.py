"""The allocator that keeps its memory: a step's pages are faulted in once."""

import platform
import subprocess
import sys

import pytest

CODE = """
import resource, torch
from lmmkit.malloc import keep_memory
if {keep}:
    assert keep_memory() == ""
for i in range(20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16 << 20)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(after - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_that_is_kept_faults_no_more():
    def faults(keep: bool) -> int:
        code = CODE.format(keep=keep)
        return int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)

    assert faults(False) > 100 and faults(True) < 20


def test_another_c_library_is_told(monkeypatch):
    from lmmkit.malloc import keep_memory

    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert keep_memory() == "the C library is not glibc"
