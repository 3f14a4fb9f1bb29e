"""headstart: from your own text data to a fine-tuned, honestly measured Transformer.

    run = headstart.finetune("reviews.csv")
    run.scores["validation"]["accuracy"]      # {"value": ..., "low": ..., "high": ...}
    run.predict(["loved it"])

A script for transformers, datasets, evaluate or accelerate imports their names from here: what headstart does itself
(`Trainer`, `TrainingArguments`, ...) is its own, everything else is the library's.

Nothing heavy is imported before it is used.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # What other libraries give: the names that scripts import most, for editors and type checkers.
    from accelerate import Accelerator as Accelerator
    from accelerate import notebook_launcher as notebook_launcher
    from datasets import ClassLabel as ClassLabel
    from datasets import Dataset as Dataset
    from datasets import DatasetDict as DatasetDict
    from datasets import Features as Features
    from datasets import IterableDataset as IterableDataset
    from datasets import Value as Value
    from datasets import concatenate_datasets as concatenate_datasets
    from datasets import load_from_disk as load_from_disk
    from transformers import AutoConfig as AutoConfig
    from transformers import AutoModel as AutoModel
    from transformers import AutoModelForCausalLM as AutoModelForCausalLM
    from transformers import AutoModelForMaskedLM as AutoModelForMaskedLM
    from transformers import AutoModelForMultipleChoice as AutoModelForMultipleChoice
    from transformers import AutoModelForQuestionAnswering as AutoModelForQuestionAnswering
    from transformers import AutoModelForSeq2SeqLM as AutoModelForSeq2SeqLM
    from transformers import AutoModelForSequenceClassification as AutoModelForSequenceClassification
    from transformers import AutoModelForTokenClassification as AutoModelForTokenClassification
    from transformers import AutoTokenizer as AutoTokenizer
    from transformers import DataCollatorForLanguageModeling as DataCollatorForLanguageModeling
    from transformers import DataCollatorForSeq2Seq as DataCollatorForSeq2Seq
    from transformers import DataCollatorForTokenClassification as DataCollatorForTokenClassification
    from transformers import DataCollatorWithPadding as DataCollatorWithPadding
    from transformers import EarlyStoppingCallback as EarlyStoppingCallback
    from transformers import EvalPrediction as EvalPrediction
    from transformers import HfArgumentParser as HfArgumentParser
    from transformers import IntervalStrategy as IntervalStrategy
    from transformers import TrainerCallback as TrainerCallback
    from transformers import TrainerControl as TrainerControl
    from transformers import TrainerState as TrainerState
    from transformers import default_data_collator as default_data_collator
    from transformers import get_linear_schedule_with_warmup as get_linear_schedule_with_warmup
    from transformers import get_scheduler as get_scheduler
    from transformers import pipeline as pipeline
    from transformers import set_seed as set_seed

    from headstart import evaluate as evaluate
    from headstart.api import finetune as finetune
    from headstart.api import list_runs as list_runs
    from headstart.api import load as load
    from headstart.data.batches import plan_batches as plan_batches
    from headstart.data.collate import collate_tokens as collate_tokens
    from headstart.data.planned_batches import PlannedBatches as PlannedBatches
    from headstart.data.sources import read_source as read_source
    from headstart.data.tokens import tokenize_table as tokenize_table
    from headstart.describing import describe_source as describe_source
    from headstart.display.description import SourceDescription as SourceDescription
    from headstart.drop_in.adamw import AdamW as AdamW
    from headstart.drop_in.arguments import TrainingArguments as TrainingArguments
    from headstart.drop_in.datasets_by_name import load_dataset as load_dataset
    from headstart.drop_in.trainer import Trainer as Trainer
    from headstart.errors import CheckpointError as CheckpointError
    from headstart.errors import DataError as DataError
    from headstart.errors import HeadstartError as HeadstartError
    from headstart.errors import HeadstartWarning as HeadstartWarning
    from headstart.errors import ModelError as ModelError
    from headstart.errors import RecipeError as RecipeError
    from headstart.errors import TrainingError as TrainingError
    from headstart.evaluate import load_metric as load_metric
    from headstart.models.load import resolve_checkpoint as resolve_checkpoint
    from headstart.models.speed import speed_up as speed_up
    from headstart.parts.accelerate_loader import prepare_loader as prepare_loader
    from headstart.parts.planned_loader import iterate_updates as iterate_updates
    from headstart.parts.rows import EncodedRows as EncodedRows
    from headstart.parts.rows import encode_rows as encode_rows
    from headstart.recipe import Recipe as Recipe
    from headstart.run import Prediction as Prediction
    from headstart.run import Run as Run
    from headstart.scoring import score as score
    from headstart.study import Study as Study
    from headstart.study_training import cross_validate as cross_validate
    from headstart.study_training import finetune_seeds as finetune_seeds
    from headstart.training.checkpoint import last_checkpoint as last_checkpoint
    from headstart.training.checkpoint import load_checkpoint as load_checkpoint
    from headstart.training.checkpoint import save_checkpoint as save_checkpoint
    from headstart.training.optim import build_optimizer as build_optimizer
    from headstart.training.schedules import build_schedule as build_schedule
    from headstart.training.schedules import learning_rate_factor as learning_rate_factor
    from headstart.tuning import Tuning as Tuning
    from headstart.tuning_search import tune as tune

# headstart's own names and their modules; "" where the name is a module itself.
_HOME = {
    "finetune": "api",
    "list_runs": "api",
    "load": "api",
    "plan_batches": "data.batches",
    "collate_tokens": "data.collate",
    "PlannedBatches": "data.planned_batches",
    "read_source": "data.sources",
    "tokenize_table": "data.tokens",
    "describe_source": "describing",
    "SourceDescription": "display.description",
    "AdamW": "drop_in.adamw",
    "TrainingArguments": "drop_in.arguments",
    "load_dataset": "drop_in.datasets_by_name",
    "Trainer": "drop_in.trainer",
    "CheckpointError": "errors",
    "DataError": "errors",
    "HeadstartError": "errors",
    "HeadstartWarning": "errors",
    "ModelError": "errors",
    "RecipeError": "errors",
    "TrainingError": "errors",
    "evaluate": "",
    "load_metric": "evaluate",
    "resolve_checkpoint": "models.load",
    "speed_up": "models.speed",
    "prepare_loader": "parts.accelerate_loader",
    "iterate_updates": "parts.planned_loader",
    "EncodedRows": "parts.rows",
    "encode_rows": "parts.rows",
    "Recipe": "recipe",
    "Prediction": "run",
    "Run": "run",
    "score": "scoring",
    "Study": "study",
    "cross_validate": "study_training",
    "finetune_seeds": "study_training",
    "Tuning": "tuning",
    "tune": "tuning_search",
    "load_checkpoint": "training.checkpoint",
    "save_checkpoint": "training.checkpoint",
    "last_checkpoint": "training.checkpoint",
    "build_optimizer": "training.optim",
    "build_schedule": "training.schedules",
    "learning_rate_factor": "training.schedules",
}

# A star import brings these, not the thousands of names of other libraries.
__all__ = sorted(_HOME)

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    value: Any
    if name in _HOME:
        home = _HOME[name]
        value = (
            getattr(importlib.import_module(f"headstart.{home}"), name)
            if home
            else importlib.import_module(f"headstart.{name}")
        )
    elif name.startswith("_"):
        raise AttributeError(f"module 'headstart' has no attribute {name!r}", name=name)
    else:
        from headstart.drop_in.lookup import find

        # Python's own import of `from headstart import ...` asks first; an attribute is asked for by the code itself.
        asking = sys._getframe(1).f_code
        for_import = asking.co_name == "_handle_fromlist" and "importlib" in asking.co_filename
        value = find(name, __all__, for_import=for_import)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    from headstart.drop_in.lookup import library_names

    return sorted({*globals(), *_HOME, *library_names()})
