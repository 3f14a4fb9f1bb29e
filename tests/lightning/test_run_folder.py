"""Checkpoints of Lightning and run folders of headstart, and the ways between them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import headstart
from headstart.errors import CheckpointError, RecipeError
from headstart.lightning import TaskDataModule, TaskModule
from headstart.runlog import (
    CARD_FILE,
    DATA_FILE,
    ENVIRONMENT_FILE,
    LOG_FILE,
    PREDICTIONS_FILE,
    RECIPE_FILE,
    SCORES_FILE,
    TASK_FILE,
)

Make = Callable[..., Any]


@pytest.fixture
def fitted(make_rows: Make, make_trainer: Make, tiny_model_dir: Path) -> tuple[TaskModule, TaskDataModule, Any]:
    data = TaskDataModule(make_rows(48), test=make_rows(10, 100), model=str(tiny_model_dir), batch_size=8, seed=4)
    module = TaskModule(learning_rate=3e-3, fast=False, settings=["evaluate.scores=[accuracy, log_loss]"])
    trainer = make_trainer(max_epochs=2, accumulate_grad_batches=2)
    trainer.fit(module, data)
    return module, data, trainer


def probabilities_of(run: headstart.Run) -> list[list[float]]:
    return [found.probabilities for found in run.predict(["the film was good", "so awful a plot"])]


def test_a_run_folder_is_as_headstarts_own(fitted: tuple[TaskModule, TaskDataModule, Any]) -> None:
    module, data, trainer = fitted
    [tested] = trainer.test(module, data, verbose=False)
    run = module.save_run("runs/mine")  # with the rows of the last Trainer
    for name in (
        RECIPE_FILE,
        TASK_FILE,
        ENVIRONMENT_FILE,
        DATA_FILE,
        LOG_FILE,
        SCORES_FILE,
        PREDICTIONS_FILE,
        CARD_FILE,
    ):
        assert (run.run_dir / name).exists()
    assert run.scores["test"]["accuracy"]["value"] == pytest.approx(tested["test_accuracy"])
    assert run.scores["test"]["log_loss"]["value"] == pytest.approx(tested["test_log_loss"], abs=1e-5)
    recipe = run.recipe
    assert (recipe.train.max_steps, recipe.train.accumulation, recipe.train.precision) == (6, 2, "fp32")
    assert (recipe.train.batch_size, recipe.train.seed, recipe.optim.learning_rate) == (8, 4, 3e-3)
    assert recipe.train.fast is False
    assert [json.loads(line)["record"] for line in (run.run_dir / LOG_FILE).read_text().splitlines()] == ["stop"]
    loaded = headstart.load(run.run_dir)
    assert probabilities_of(loaded) == probabilities_of(run)
    assert loaded.evaluate([{"text": "the film was good", "label": "good"}, {"text": "bad", "label": "bad"}])[
        "accuracy"
    ]
    with pytest.raises(CheckpointError, match="not empty"):
        module.save_run("runs/mine", data)
    assert module.save_run(datamodule=data).run_dir == Path("runs/data-1")


def test_a_recipe_of_a_run_repeats_the_training(
    fitted: tuple[TaskModule, TaskDataModule, Any], make_rows: Make, tmp_path: Path
) -> None:
    module, data, _ = fitted
    run = module.save_run("runs/mine", data)
    again = headstart.finetune(
        {"train": make_rows(48), "test": make_rows(10, 100)},
        recipe=run.run_dir / RECIPE_FILE,
        run=tmp_path / "again",
        progress=False,
    )
    for one, other in zip(probabilities_of(run), probabilities_of(again), strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_a_run_becomes_a_module(
    fitted: tuple[TaskModule, TaskDataModule, Any], make_trainer: Make, make_rows: Make
) -> None:
    module, data, trainer = fitted
    before = trainer.test(module, data, verbose=False)
    run = module.save_run("runs/mine", data)
    again = TaskModule.from_run(run.run_dir)
    assert again.given["optim.learning_rate"] == 3e-3
    assert make_trainer().test(again, data, verbose=False) == before
    trainer = make_trainer(max_epochs=1)
    trainer.fit(again, data)  # goes on learning, with a new optimizer
    assert trainer.global_step == 6
    assert not torch.equal(next(again.parameters()), torch.as_tensor(next(module.parameters())))


def test_a_checkpoint_loads_without_code(
    fitted: tuple[TaskModule, TaskDataModule, Any], make_trainer: Make, tmp_path: Path
) -> None:
    module, data, trainer = fitted
    before = trainer.test(module, data, verbose=False)
    trainer.save_checkpoint("mine.ckpt")
    kept = torch.load("mine.ckpt", weights_only=True)
    assert kept["hyper_parameters"]["task"]["labels"] == ["bad", "good"]
    again = TaskModule.load_from_checkpoint("mine.ckpt", weights_only=True)
    assert again.task == module.task
    assert again.recipe.optim.learning_rate == 3e-3
    assert make_trainer().test(again, data, verbose=False) == before
    assert probabilities_of(again.save_run("runs/again", data)) == probabilities_of(module.save_run("runs/mine", data))
    assert again.save_run("runs/third", data).recipe == headstart.load("runs/mine").recipe.replace(
        {"output.run": "runs/third"}
    )
    other = TaskModule.load_from_checkpoint("mine.ckpt", learning_rate=1e-5)
    assert other.recipe.optim.learning_rate == 1e-5


def test_a_run_needs_rows_and_a_training(fitted: tuple[TaskModule, TaskDataModule, Any], make_trainer: Make) -> None:
    _, data, trainer = fitted
    trainer.save_checkpoint("mine.ckpt")
    with pytest.raises(RecipeError, match="no rows to score"):
        TaskModule.load_from_checkpoint("mine.ckpt").save_run("runs/a")
    untrained = TaskModule()
    with pytest.warns(UserWarning, match="new head that was never trained"):
        make_trainer().test(untrained, data, verbose=False)
    with pytest.raises(CheckpointError, match="not trained"):
        untrained.save_run("runs/a", data)
    with pytest.raises(CheckpointError, match="no run"):
        TaskModule.from_run("runs/a")
