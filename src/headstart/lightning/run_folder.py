"""Between a module of Lightning and a run folder of headstart.

May import layers 0 to 5. A run folder is the same whoever trained: `headstart.load(run_dir)` predicts and evaluates.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from headstart.errors import CheckpointError, RecipeError
from headstart.lightning.given import Given, collect, merge, of_the_model
from headstart.models.load import LoadedModel, load_saved_classifier, token_limit
from headstart.preparation import Plan, absolute_source, choose_run_dir, filled_recipe, make_plan
from headstart.recipe import read_recipe_file
from headstart.records import StopRecord
from headstart.results import write_results
from headstart.run import Run
from headstart.run_writer import RunWriter
from headstart.runlog import MODEL_DIR, RECIPE_FILE
from headstart.tasks import Task
from headstart.training.device import choose_device

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from transformers import PreTrainedModel

    from headstart.lightning.data_module import TaskDataModule
    from headstart.lightning.task_module import TaskModule

__all__ = ["ReadRun", "read_run", "write_run", "write_run_once"]

# What headstart's own loop does and Lightning's Trainer does by arguments and callbacks.
_NOT_OF_A_TRAINER: dict[str, Any] = {
    "train.epochs": None,
    "train.evaluate_every": None,
    "train.save_every": None,
    "train.best": None,
    "train.patience": None,
    "train.time_limit": None,
    "train.process_timeout": None,
    "train.processes": None,
    "train.device": "auto",
    "output.log_to": [],
}


@dataclass(frozen=True)
class ReadRun:
    """What a module needs of a run.

    Args:
        given: settings of the model and of how it learned.
        task: what it learned.
        model: with the weights of the run.
        updates_made: steps of its training.
    """

    given: Given
    task: Task
    model: torch.nn.Module
    updates_made: int


def read_run(run_dir: str | Path) -> ReadRun:
    """Read a finished run.

    Raises:
        CheckpointError: the folder is no finished run.
    """
    run = Run(run_dir)
    path = Path(run_dir)
    given = _of_any_loop(of_the_model(collect(path / RECIPE_FILE, (), {})))
    given.pop("model.lora", None)  # the adapters are merged into the weights
    steps = int(read_recipe_file(path / RECIPE_FILE)[1].get("total_steps", 0))
    return ReadRun(given, run.task, load_saved_classifier(path / MODEL_DIR).model, steps)


def _of_any_loop(given: Given) -> Given:
    """Leave out what headstart's own loop does and Lightning's does not."""
    left_out = {"model.unfreeze_every"}
    if given.get("optim.schedule") == "plateau":
        left_out |= {"optim.schedule", "optim.plateau_factor", "optim.plateau_patience"}
    return {key: value for key, value in given.items() if key not in left_out}


def write_run_once(
    module: TaskModule, run_dir: str | Path | None, data: TaskDataModule | None, trainer: Trainer | None
) -> Run:
    """Let one of the processes that call this together write the run; see `write_run`.

    Raises:
        CheckpointError: as `write_run`; in the other processes, where it could not.
    """
    if trainer is None or trainer.world_size == 1:
        return write_run(module, run_dir, data)
    written: str | None = None
    try:
        if trainer.is_global_zero:
            written = str(write_run(module, run_dir, data).run_dir)
    finally:
        written = trainer.strategy.broadcast(written)
    if written is None:
        raise CheckpointError("save_run: process 0 could not write the run.", "", "Look at what it printed.")
    return Run(written)


def write_run(module: TaskModule, run_dir: str | Path | None, data: TaskDataModule | None) -> Run:
    """Write what a module has learned as a run folder, scored with the rows of its data module.

    Raises:
        CheckpointError: the model was not trained, or the folder is not free.
        RecipeError: there is no data module.
    """
    if data is None:
        raise RecipeError(
            "save_run: there are no rows to score the model with.",
            "the data module that it was trained with.",
            "Write module.save_run(run_dir, data).",
        )
    if not module.updates_made or not module.trained:
        raise CheckpointError(
            "save_run: the model was not trained.", "at least one update.", "Write trainer.fit(module, data) first."
        )
    plan = _plan(module, run_dir, data)
    try:
        writer = RunWriter(plan, plan.loaded.model, plan.fast.optimizer)
        writer.open()
        try:
            writer.log(StopRecord(module.updates_made, "done", _who_trained(module), 0.0))
        finally:
            writer.close()
        write_results(plan)
    finally:
        plan.fast.undo()
        module.known_model.train()
    return Run(plan.run_dir)


def _who_trained(module: TaskModule) -> str:
    total = module.trained["train.max_steps"]
    stopped = f", which made {module.updates_made} of {total} updates" if module.updates_made < total else ""
    return f"trained by a Trainer of Lightning{stopped}"


def _plan(module: TaskModule, run_dir: str | Path | None, data: TaskDataModule) -> Plan:
    """Describe the training that was made, as headstart would have planned it."""
    recipe = merge(data.given, module.given, data.recipe)
    own_way = recipe.train.fast
    values: dict[str, Any] = {
        **_NOT_OF_A_TRAINER,
        **module.trained,
        "train.fast": False,  # nothing is trained any more
    }
    if run_dir is not None:
        values["output.run"] = str(run_dir)
    for key, source in (("train", data.source), ("validation", recipe.data.validation), ("test", recipe.data.test)):
        if isinstance(source, str | os.PathLike):
            values[f"data.{key}"] = absolute_source(str(source))
    recipe, scores = filled_recipe(recipe.replace(values), data.data, data.source)
    loaded = LoadedModel(cast("PreTrainedModel", module.known_model), data.tokenizer, module.new_parameters)
    device = choose_device(recipe.train.device, recipe.train.precision, recipe.train.threads)
    folder = choose_run_dir(recipe, data.data, resume=False)
    limit = token_limit(loaded.model.config, loaded.tokenizer)
    plan = make_plan(recipe, data.data, loaded, device, scores, folder, False, False, {}, limit, 1)
    plan.recipe = plan.recipe.replace({"train.fast": own_way})
    if module.fast_parts:
        plan.derived["fast"] = plan.summary.fast = module.fast_parts
    return plan
