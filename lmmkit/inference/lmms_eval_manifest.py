"""Names lmmkit's model to lmms-eval, by the entry point `lmms_eval.models`. Imports neither torch nor lmms-eval."""

from __future__ import annotations

from typing import Any

CLASS = "lmmkit.inference.lmms_eval_model.LmmkitModel"


def models() -> Any:
    """Returns the manifest of the model `lmmkit`. lmms-eval calls it."""
    from lmms_eval.models.registry_v2 import ModelManifest  # type: ignore[import-not-found]

    return ModelManifest(model_id="lmmkit", simple_class_path=CLASS)
