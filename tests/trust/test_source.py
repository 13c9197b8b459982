"""No file of the package runs code from data, opens a connection or unpacks; and the test would see it."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from tests.support.source_scan import faults

ROOT = Path(__file__).resolve().parent.parent.parent
FILES = sorted(p for top in ("lmmkit", "plugins", "benches", "docs") for p in (ROOT / top).rglob("*.py"))

# Each with the reason why no data decides what happens there.
ALLOWED = {
    ("lmmkit/__init__.py", "imports importlib (runs code)"): "the package's own three homes, a literal table",
    ("lmmkit/__init__.py", "calls import_module"): "the same",
    ("lmmkit/api/plugin_files.py", "imports importlib (runs code)"): "runs a plugin file, behind --trust-files alone",
    ("lmmkit/attention/xformers_backend.py", "imports ctypes (runs code)"): "loads the CUDA runtime of an installed package",
    ("lmmkit/runs/run_lock.py", "imports socket (connects)"): "gethostname, for the run's lock",
    ("lmmkit/chat_page/serve.py", "imports socket (connects)"): "listens on the loopback address, at `lmmkit chat --web` alone",
    ("lmmkit/chat_page/serve.py", "imports uvicorn (serves)"): "the same; the guard asks for the token of the address",
    ("lmmkit/commands/support/jobs.py", "imports subprocess (runs programs)"): "this Python with commands of ours, no shell",
    ("lmmkit/commands/model.py", "passes allow_pickle"): "the user's own option; the reader is torch's weights-only one",
    ("lmmkit/model/transforms/compiled.py", "names torch.compile"): "compiles methods of ours; no data decides what they are",
    ("benches/peak.py", "imports subprocess (runs programs)"): "this Python with a bench of ours, no shell",
    ("benches/test_start.py", "imports subprocess (runs programs)"): "this Python with an import, no shell",
    ("benches/nccl.py", "imports subprocess (runs programs)"): "torchrun with a recipe of ours, no shell",
    ("lmmkit/errors/__init__.py", "defines __reduce__"): "an error comes back from a data worker with its problems",
    ("lmmkit/api/components.py", "defines __reduce_ex__"): "a component goes to a data worker, which checks its file's hash",
    ("lmmkit/errors/__init__.py", "imports importlib (runs code)"): "the package's own files of codes, a literal table",
    ("lmmkit/errors/__init__.py", "calls import_module"): "the same",
    ("lmmkit/api/__init__.py", "imports importlib (runs code)"): "the package's own files, a literal table",
    ("lmmkit/api/__init__.py", "calls import_module"): "the same",
    ("lmmkit/import_export.py", "passes pretrained"): "folders that the recipe names, of our own function; not timm's option",
    ("lmmkit/inference/load.py", "passes pretrained"): "folders that the recipe names, of our own function; not timm's option",
    ("lmmkit/plan/prepare.py", "passes pretrained"): "folders that the recipe names, of our own function; not timm's option",
    ("lmmkit/plan/teachers.py", "passes pretrained"): "folders that the recipe names, of our own function; not timm's option",
    ("lmmkit/training/save_models.py", "passes pretrained"): "folders that the recipe names, of our own function; not timm's option",
    ("lmmkit/plugin_costs.py", "passes pretrained"): "folders that the recipe names, of our own function; not timm's option",
    ("lmmkit/plan/dry_run/second_process.py", "imports subprocess (runs programs)"): "this Python with a function of ours, no shell",
    ("lmmkit/plan/dry_run/second_process.py", "imports pickle (reads objects back to life)"): "tasks to that process through a pipe, as to a data worker",
    ("lmmkit/report/page.py", "imports jinja2 (runs templates)"): "the package's own templates, with autoescape; data are values",
    ("lmmkit/ablation/board.py", "imports tensorboard (serves)"): "writes event files; nothing serves",
    ("lmmkit/data/images.py", "defines __reduce__"): "goes to a data worker without its cache",
    ("lmmkit/data/sampler.py", "defines __reduce__"): "goes to a data worker as its settings",
    ("lmmkit/data/length_grouping.py", "defines __reduce__"): "the same",
    ("lmmkit/data/sources/index_cache.py", "defines __reduce__"): "goes to a data worker as the folder it maps there",
    ("lmmkit/data/sources/indexed_records.py", "defines __reduce__"): "goes to a data worker as the paths that it opens there",
    ("lmmkit/data/sources/webdataset_shards.py", "imports importlib (runs code)"): "two names of ours: the optional webdataset",
    ("lmmkit/data/sources/webdataset_shards.py", "calls import_module"): "the same",
}  # fmt: skip


@cache
def found() -> set[tuple[str, str]]:
    return {(str(path.relative_to(ROOT)), fault) for path in FILES for fault in faults(path.read_text())}


def test_no_file_runs_code_from_data_connects_or_unpacks():
    assert len(FILES) > 100
    assert not found() - set(ALLOWED)


def test_nothing_is_allowed_that_is_not_there():
    assert not set(ALLOWED) - found()
    assert all(ALLOWED.values())


PLANTED = {
    "import pickle": "imports pickle",
    "from pickle import loads": "imports pickle",
    "import os.path, marshal as m": "imports marshal",
    "def f():\n    import shelve": "imports shelve",
    "import tarfile\ntarfile.open(x).extractall()": "unpacks",
    "import tarfile\nwith tarfile.open(x) as tar:\n    tar.extract(member, folder)": "unpacks",
    "tar.extractfile(member)": "unpacks",
    "unpack = tar._extract_member": "unpacks",
    "getattr(tar, 'extractall')": "calls 'extractall' by its name",
    "from zipfile import ZipFile": "unpacks",
    "import shutil\nshutil.unpack_archive(x)": "shutil.unpack_archive",
    "import requests": "connects",
    "from urllib.request import urlopen": "connects",
    "import http.client": "connects",
    "from socket import create_connection": "connects",
    "from huggingface_hub import hf_hub_download": "connects",
    "import torch\ntorch.load(x)": "torch.load without",
    "import torch\ntorch.load(x, weights_only=False)": "torch.load without",
    "import torch\ntorch.load(x, weights_only=flag)": "torch.load without",
    "from torch import load\nload(x)": "torch.load without",
    "import torch as t\nt.load(x)": "torch.load without",
    "import torch\ntorch.hub.load('a/b', 'c')": "torch.hub.load",
    "import torch\ntorch.jit.load(x)": "torch.jit.load",
    "import numpy as np\nnp.load(x, allow_pickle=True)": "passes allow_pickle",
    "import numpy as np\nnp.load(x, 'r', True)": "passes allow_pickle",
    "import yaml\nyaml.load(x)": "imports yaml",
    "eval(x)": "names eval",
    "run = exec": "names exec",
    "compile(x, 'f', 'exec')": "names compile",
    "__import__(x)": "names __import__",
    "import builtins": "imports builtins",
    "import os\nos.system(x)": "names os.system",
    "import os as o\no.system(x)": "names os.system",
    "from os import system as s\ns(x)": "names os.system",
    "import os\ngetattr(os, 'system')": "calls 'system' by its name",
    "getattr(x, 'eval')": "calls 'eval' by its name",
    "import os\nos.execv(x, [])": "names os.execv",
    "import os\nos.spawnl(0, x)": "names os.spawnl",
    "import os\nos.popen(x)": "names os.popen",
    "import subprocess": "runs programs",
    "run(x, shell=True)": "passes shell",
    "run(x, shell=flag)": "passes shell",
    "AutoModel.from_pretrained(x, trust_remote_code=True)": "passes trust_remote_code",
    "timm.create_model(x, pretrained=True)": "passes pretrained",
    "import importlib\nimportlib.import_module(x)": "calls import_module",
    "from importlib import import_module\nimport_module(x)": "calls import_module",
    "import runpy": "runs code",
    "from importlib.util import spec_from_file_location": "runs code",
    "import ctypes": "runs code",
    "import jinja2": "runs templates",
    "from tensorboard import program": "serves",
    "class A:\n    def __reduce__(self):\n        return f, ()": "defines __reduce__",
    "class A:\n    def __setstate__(self, state):\n        pass": "defines __setstate__",
}  # fmt: skip
HARMLESS = (
    "import re\nre.compile(x)",
    "import tarfile\ntarfile.open(fileobj=file, mode='r:').next()",
    "import torch\ntorch.load(x, weights_only=True)",
    "import numpy as np\nnp.load(x, allow_pickle=False)",
    "from importlib.metadata import entry_points",
    "from importlib import metadata",
    "model.eval()",
    "from torch.utils.tensorboard import SummaryWriter",
    "run(x, shell=False)",
    "timm.create_model(x, pretrained=False)",
    "from lmmkit.plan.compile_plan import compile_plan",
)


@pytest.mark.parametrize("source", PLANTED)
def test_what_is_planted_is_found(source):
    assert any(PLANTED[source] in fault for fault in faults(source)), source


@pytest.mark.parametrize("source", HARMLESS)
def test_what_is_harmless_is_not(source):
    assert not list(faults(source)), source
