"""The recipe: one YAML file that says everything about a run.

`schema` is the form, `read` turns a file, a text or a mapping into a checked `Recipe`, `write`
turns it back, `diff` compares two. `tree` (YAML with line numbers), `words` (what a complaint
says) and `checks` (rules between keys) are what `read` is made of.
"""

from lmmkit.recipe.diff import ABSENT, Difference, diff, section_class
from lmmkit.recipe.places import Places
from lmmkit.recipe.read import from_mapping, read_recipe, read_text
from lmmkit.recipe.schema import (
    CLIP_MEAN,
    CLIP_STD,
    Batch,
    Connector,
    Evaluate,
    Length,
    Lora,
    Model,
    Numerics,
    Optim,
    Output,
    Recipe,
    Source,
    Speaks,
    Speed,
    Stage,
    Task,
    TextFrom,
    TextModel,
    TextScratch,
    Tokenizer,
    Train,
    TrainPart,
    TrainText,
    Validate,
    Vision,
    VisionFrom,
    VisionScratch,
    VisionTimm,
    Weight,
)
from lmmkit.recipe.write import digest, dump, to_mapping
