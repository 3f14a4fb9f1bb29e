"""What others build on is pinned: a change here is a change of an interface, and belongs into the changelog."""

from dataclasses import fields

import headstart
from headstart import runlog
from headstart.cli.commands import COMMANDS
from headstart.recipe import Recipe
from headstart.runlog import CheckpointRecord, EvaluationRecord, StepRecord, StopRecord, WarningRecord

NAMES = (
    "AdamW CheckpointError DataError EncodedRows HeadstartError HeadstartWarning ModelError PlannedBatches "
    "Prediction Recipe RecipeError Run SourceDescription Study Trainer TrainingArguments TrainingError Tuning "
    "build_optimizer build_schedule collate_tokens cross_validate describe_source encode_rows evaluate finetune "
    "finetune_seeds iterate_updates last_checkpoint learning_rate_factor list_runs load load_checkpoint load_dataset "
    "load_metric plan_batches prepare_loader read_source resolve_checkpoint save_checkpoint score speed_up "
    "tokenize_table tune"
)
RECIPE = {
    "task": "name labels ordinal delimiter threshold",
    "data": "train validation test encoding delimiter header sheet query columns weight group time seed "
    "validation_fraction fold limit max_length strict",
    "model": "checkpoint revision dropout seed freeze unfreeze_every lora",
    "optim": "name learning_rate weight_decay beta1 beta2 beta3 epsilon epsilon2 momentum momentum_decay beta2_decay "
    "clip_threshold d_coef schedule warmup power end_factor cycles plateau_factor plateau_patience layer_decay "
    "max_grad_norm class_weights label_smoothing focal_gamma",
    "train": "epochs max_steps batch_size tokens_per_batch accumulation order precision gradient_checkpointing compile "
    "device fast seed evaluate_every save_every keep best patience on_non_finite processes process_timeout threads "
    "time_limit ema",
    "evaluate": "scores batch_size baselines confidence",
    "output": "run log_to",
}
RECORDS = {
    StepRecord: "step epoch loss learning_rate grad_norm rows tokens seconds",
    EvaluationRecord: "step epoch split scores seconds best",
    CheckpointRecord: "step path best",
    WarningRecord: "step kind message rows",
    StopRecord: "step reason message seconds",
}
OPTIONS = {
    "demo": "--run --quiet --traceback",
    "train": "--test --validation --text --pair --label --limit --max-length --task --model --epochs --batch-size "
    "--learning-rate --seed --processes --seeds --folds --keep-models --recipe --set --run --resume --allow --debug "
    "--yes --quiet --json --traceback",
    "predict": "--file --text --pair --set --output --probabilities --batch-size --traceback",
    "evaluate": "--text --pair --label --set --json --traceback",
    "runs": "--traceback",
    "show": "--test --validation --text --pair --label --model --set --examples --seed --html --traceback",
    "tune": "--trials --search --workers --test --validation --text --pair --label --limit --max-length --task --model "
    "--epochs --batch-size --learning-rate --seed --recipe --set --run --resume --debug --yes --quiet --json "
    "--traceback",
}
FILES = (
    "recipe.yaml task.json environment.json data.json log.jsonl log.discarded.jsonl scores.json predictions.parquet "
    "README.md model checkpoints non_finite .lock"
)


def test_exported_names() -> None:
    assert list(headstart.__all__) == NAMES.split()
    assert all(hasattr(headstart, name) for name in headstart.__all__)


def test_recipe_fields() -> None:
    found = {name: " ".join(type(getattr(Recipe(), name)).model_fields) for name in Recipe.model_fields}
    assert found == RECIPE


def test_record_fields() -> None:
    assert {kind: " ".join(field.name for field in fields(kind)) for kind in RECORDS} == RECORDS


def test_commands_and_options() -> None:
    assert {name: " ".join(option.name for option in command.options) for name, command in COMMANDS.items()} == OPTIONS


def test_names_in_a_run_folder() -> None:
    found = [
        runlog.RECIPE_FILE, runlog.TASK_FILE, runlog.ENVIRONMENT_FILE, runlog.DATA_FILE, runlog.LOG_FILE,
        runlog.DISCARDED_LOG_FILE, runlog.SCORES_FILE, runlog.PREDICTIONS_FILE, runlog.CARD_FILE, runlog.MODEL_DIR,
        runlog.CHECKPOINTS_DIR, runlog.NON_FINITE_DIR, runlog.LOCK_FILE,
    ]  # fmt: skip
    assert found == FILES.split()
