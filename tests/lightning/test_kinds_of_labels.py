"""Several labels, numbers, weights of rows and of classes, through Lightning's Trainer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback

from headstart.lightning import TaskDataModule, TaskModule
from headstart.preparation import prepare_plan
from headstart.records import StepRecord
from headstart.training_run import run_plan

Make = Callable[..., Any]
ROWS = [
    {
        "text": f"the film {index} was {'good' if index % 3 else 'bad'}",
        "tags": ["good"] * bool(index % 3) + ["even"] * (index % 2 == 0),
        "price": 100.5 + index % 3,
        "label": int(bool(index % 3)),
        "w": 1.0 + index % 2,
    }
    for index in range(40)
]


def first_loss(make_trainer: Make, data: TaskDataModule, module: TaskModule) -> float:
    losses: list[float] = []

    class Keep(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            losses.append(float(trainer.callback_metrics["train_loss"]))

    make_trainer(max_steps=1, callbacks=[Keep()], limit_val_batches=0).fit(module, data)
    return losses[0]


@pytest.mark.parametrize(
    ("columns", "optim"),
    [
        ({"data.columns.label": "tags"}, {}),
        ({"data.columns.label": "tags"}, {"optim.class_weights": "balanced", "optim.focal_gamma": 2.0}),
        ({"data.columns.label": "price"}, {}),
        ({"data.columns.label": "label", "data.weight": "w"}, {"optim.label_smoothing": 0.1}),
    ],
)
def test_the_loss_is_that_of_headstarts_own_loop(
    columns: dict[str, str], optim: dict[str, Any], make_trainer: Make, tiny_model_dir: Path, tmp_path: Path
) -> None:
    shared = {"train.batch_size": 8, "train.seed": 3, **columns}
    data = TaskDataModule(
        ROWS,
        model=str(tiny_model_dir),
        settings=[f"{key}={value}" for key, value in {**shared, "model.dropout": 0}.items()],
    )
    module = TaskModule(learning_rate=1e-3, fast=False, settings=[f"{key}={value}" for key, value in optim.items()])
    plan = prepare_plan(
        ROWS,
        values={
            **shared, **optim, "model.dropout": 0.0, "model.checkpoint": str(tiny_model_dir), "train.fast": False,
            "train.precision": "fp32", "train.max_steps": 1, "train.order": "length",
            "output.run": str(tmp_path / "own"),
        },
    )  # fmt: skip
    own = [record.loss for record in run_plan(plan) if isinstance(record, StepRecord)]
    assert first_loss(make_trainer, data, module) == pytest.approx(own[0], rel=1e-5)


def test_numbers_become_a_run_and_leave_the_module_as_it_is(make_trainer: Make, tiny_model_dir: Path) -> None:
    data = TaskDataModule(ROWS, label="price", model=str(tiny_model_dir), batch_size=8)
    module = TaskModule(learning_rate=3e-3, fast=False)
    trainer = make_trainer(max_epochs=2)
    trainer.fit(module, data)
    assert {"val_rmse", "val_pearson"} <= set(trainer.callback_metrics)
    before = {name: value.clone() for name, value in module.known_model.state_dict().items()}
    predicted = torch.cat(trainer.predict(module, data))
    run = module.save_run("runs/prices")
    assert all((before[name] == value).all() for name, value in module.known_model.state_dict().items())
    rows = data.data.splits["validation"].table["text"]
    np.testing.assert_allclose(
        [found.prediction for found in run.predict(list(rows))], predicted[:, 0].numpy(), rtol=1e-4
    )
    again = TaskModule.from_run("runs/prices")
    assert again.known_task.label_names == ("price",)


def test_several_labels_are_scored_together(make_trainer: Make, tiny_model_dir: Path) -> None:
    data = TaskDataModule(ROWS, label="tags", model=str(tiny_model_dir), batch_size=8)
    module = TaskModule(learning_rate=3e-3, fast=False)
    trainer = make_trainer(max_epochs=1)
    trainer.fit(module, data)
    assert {"val_f1_micro", "val_exact_match"} <= set(trainer.callback_metrics)
    run = module.save_run("runs/tags")
    assert isinstance(run.predict(["the film 2 was good"])[0].prediction, list)
