"""headstart: from your own text data to a fine-tuned, honestly measured Transformer.

    run = headstart.finetune("reviews.csv")
    run.scores["validation"]["accuracy"]      # {"value": ..., "low": ..., "high": ...}
    run.predict(["loved it"])

Nothing heavy is imported before it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headstart.api import finetune as finetune
    from headstart.api import list_runs as list_runs
    from headstart.api import load as load
    from headstart.data.batches import plan_batches as plan_batches
    from headstart.data.collate import collate_tokens as collate_tokens
    from headstart.errors import CheckpointError as CheckpointError
    from headstart.errors import DataError as DataError
    from headstart.errors import HeadstartError as HeadstartError
    from headstart.errors import HeadstartWarning as HeadstartWarning
    from headstart.errors import ModelError as ModelError
    from headstart.errors import RecipeError as RecipeError
    from headstart.errors import TrainingError as TrainingError
    from headstart.recipe import Recipe as Recipe
    from headstart.run import Prediction as Prediction
    from headstart.run import Run as Run
    from headstart.training.checkpoint import load_checkpoint as load_checkpoint
    from headstart.training.checkpoint import save_checkpoint as save_checkpoint
    from headstart.training.optim import build_optimizer as build_optimizer

_HOME = {
    "finetune": "api",
    "list_runs": "api",
    "load": "api",
    "plan_batches": "data.batches",
    "collate_tokens": "data.collate",
    "CheckpointError": "errors",
    "DataError": "errors",
    "HeadstartError": "errors",
    "HeadstartWarning": "errors",
    "ModelError": "errors",
    "RecipeError": "errors",
    "TrainingError": "errors",
    "Recipe": "recipe",
    "Prediction": "run",
    "Run": "run",
    "load_checkpoint": "training.checkpoint",
    "save_checkpoint": "training.checkpoint",
    "build_optimizer": "training.optim",
}

__all__ = sorted(_HOME)

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'headstart' has no attribute {name!r}. Available: {', '.join(sorted(_HOME))}")
    value = getattr(importlib.import_module(f"headstart.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
