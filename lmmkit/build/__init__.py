"""Builds an objective and prepares it for a stage. Everything happens in this order:

1. `shell`: all modules on the meta device, so that folders can be checked before memory is allocated.
2. `build_objective`: memory, values drawn from the seed, values loaded from folders. Matrices that
   `numerics.frozen` stores in bfloat16 are rounded before loading, or after drawing.
3. `start`: the weights of the model that the stage starts from.
4. `set_stage`: LoRA updates of the last stage are merged; trainable parameters; LoRA of this stage.
5. Sharding over ranks (`training/distributed/fsdp.py`): names and dtypes of parameters are final by now.
6. `set_layers`: compilation around attention, then recomputation around compiled layers.
7. The optimizer, over the parameters that `set_stage` returned.
"""

from lmmkit.build.device import (
    attention_text,
    backend,
    check_compiler,
    compute_dtype,
    conditions,
    device_here,
)
from lmmkit.build.model import (
    build_encoder,
    build_objective,
    check_pretrained,
    encoder,
    frozen_narrow,
    modules,
    narrow_parts,
    shell,
)
from lmmkit.build.reference import narrow_reference, parts_of, reference_copies, reference_parts
from lmmkit.build.stage import set_layers, set_stage, start
from lmmkit.build.teachers import check_teachers, open_teachers, teacher_shell

__all__ = [
    "attention_text",
    "backend",
    "build_encoder",
    "build_objective",
    "check_compiler",
    "check_pretrained",
    "check_teachers",
    "compute_dtype",
    "conditions",
    "device_here",
    "encoder",
    "frozen_narrow",
    "modules",
    "narrow_parts",
    "narrow_reference",
    "open_teachers",
    "parts_of",
    "reference_copies",
    "reference_parts",
    "set_layers",
    "set_stage",
    "shell",
    "start",
    "teacher_shell",
]
