"""All benches: two threads unless OMP_NUM_THREADS says otherwise, and the allocator that was asked for."""

import os

import torch

from lmmkit.malloc import keep_memory

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
if os.environ.get("LMMKIT_MALLOC") == "kept" and (why_not := keep_memory()):
    raise SystemExit(f"LMMKIT_MALLOC=kept: {why_not}")
