"""The recipe: one YAML file that describes a run completely.

`schema` (with `model`, `stage`, `field_types`) defines the keys. `read` turns a file, a text or a mapping
into a checked `Recipe`, `write` turns it back, `diff` compares two. Helpers: `yaml_tree` (YAML with line
numbers), `error_messages` (texts of problems) and `rules` (rules between keys).
"""

from lmmkit.recipe.diff import ABSENT, Difference, diff, section_class
from lmmkit.recipe.model import (
    NO_WEIGHTS,
    Chat,
    ConnectorConfig,
    Model,
    Numerics,
    RopeScaling,
    TeacherFrom,
    TemplateName,
    TextFrom,
    TextModel,
    TextScratch,
    Tokenizer,
    Vision,
    VisionFrom,
    VisionScratch,
    VisionTimm,
)
from lmmkit.recipe.read import (
    around,
    from_mapping,
    model_from_mapping,
    read_recipe,
    read_text,
    vision_from_mapping,
)
from lmmkit.recipe.schema import Evaluate, Output, Parallel, Recipe, Speed, Task
from lmmkit.recipe.source_positions import MovedPlaces, Places
from lmmkit.recipe.stage import (
    BatchConfig,
    Length,
    Lora,
    Optim,
    Source,
    Stage,
    Train,
    TrainPart,
    TrainText,
    Validate,
    Weight,
)
from lmmkit.recipe.write import digest, dump, flow_text, section_mapping, to_mapping

__all__ = [
    "ABSENT",
    "NO_WEIGHTS",
    "BatchConfig",
    "Chat",
    "ConnectorConfig",
    "Difference",
    "Evaluate",
    "Length",
    "Lora",
    "Model",
    "MovedPlaces",
    "Numerics",
    "Optim",
    "Output",
    "Parallel",
    "Places",
    "Recipe",
    "RopeScaling",
    "Source",
    "Speed",
    "Stage",
    "Task",
    "TeacherFrom",
    "TemplateName",
    "TextFrom",
    "TextModel",
    "TextScratch",
    "Tokenizer",
    "Train",
    "TrainPart",
    "TrainText",
    "Validate",
    "Vision",
    "VisionFrom",
    "VisionScratch",
    "VisionTimm",
    "Weight",
    "around",
    "diff",
    "digest",
    "dump",
    "flow_text",
    "from_mapping",
    "model_from_mapping",
    "read_recipe",
    "read_text",
    "section_class",
    "section_mapping",
    "to_mapping",
    "vision_from_mapping",
]
