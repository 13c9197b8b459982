"""lmmkit env: what a bug report needs."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata

from rich.table import Table

from lmmkit.commands.support.common import STARTING, Json, print_json, print_table, reporting
from lmmkit.progress import working

# Packages whose version explains most reports; the first three always have a line.
PACKAGES = (
    "lmmkit", "torch", "xformers", "torchdata", "timm", "tokenizers", "sentencepiece", "safetensors", "numpy",
    "pillow", "pydantic", "transformers", "peft", "bitsandbytes",
)  # fmt: skip
TYPES = ("float32", "bfloat16")


@reporting
def env(as_json: Json = False) -> None:
    """Print versions, devices and attention backends, for a bug report."""
    with working(STARTING):
        import torch

        from lmmkit.attention_benchmark import reasons
        from lmmkit.build import device_here

    devices = dict.fromkeys(("cpu", device_here().type))
    backends = {
        device: {
            dtype: {name: why or "runs" for name, why in reasons(torch.device(device), kind).items()}
            for dtype, kind in ((name, getattr(torch, name)) for name in TYPES)
        }
        for device in devices
    }
    found = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cuda": torch.version.cuda or "not in this torch",
        "devices": _devices(torch),
        "variables": {key: value for key, value in sorted(os.environ.items()) if key.startswith("LMMKIT_")},
        "attention": backends,
    }
    print_json(found) if as_json else _print(found)


def _print(found: dict) -> None:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column()
    table.add_column()
    for name in ("python", "platform", "cuda"):
        table.add_row(name, found[name])
    for name, version in found["packages"].items():
        if version is not None or name in PACKAGES[:3]:
            table.add_row(name, version or "not installed")
    for device in found["devices"]:
        table.add_row("device", device)
    for key, value in found["variables"].items():
        table.add_row(key, value)
    for device, by_type in found["attention"].items():
        for name in by_type[TYPES[0]]:
            reasons = {dtype: by_type[dtype][name] for dtype in TYPES}
            same = len(set(reasons.values())) == 1
            text = (
                next(iter(reasons.values()))
                if same
                else "; ".join(f"{t}: {why}" for t, why in reasons.items())
            )
            table.add_row(f"{device} attention", f"{name}: {text}")
    print_table(table)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _devices(torch) -> list[str]:
    """Returns the devices: processors with the threads that torch uses, and CUDA devices with their memory."""
    counts = {"processor": os.cpu_count() or 1, "thread": torch.get_num_threads()}
    shown = ", ".join(f"{n} {what}{'s' * (n != 1)}" for what, n in counts.items())
    cpus = f"cpu: {shown}, {sys.byteorder} endian"
    cuda = (torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count()))
    return [
        cpus,
        *(f"cuda: {p.name}, {p.total_memory / 2**30:.0f} GiB, compute {p.major}.{p.minor}" for p in cuda),
    ]
