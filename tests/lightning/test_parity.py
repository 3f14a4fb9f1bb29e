"""A fit of Lightning makes the updates that headstart's own loop makes: same rows, same losses, same weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from headstart.api import prepare
from headstart.lightning import TaskDataModule, TaskModule
from headstart.recipe import build_recipe
from headstart.records import StepRecord


def engine(
    source: Any, validation: Any, settings: dict[str, Any], run_dir: Path
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Train with headstart's own loop; give the loss of each step, and the weights."""
    values = {**settings, "output.run": str(run_dir), "train.evaluate_every": None, "train.device": "cpu"}
    values |= {"train.save_every": 1000, "train.threads": 1}
    preparation = prepare({"train": source, "validation": validation}, values=values)
    losses = [record.loss for record in preparation.train() if isinstance(record, StepRecord)]
    return losses, preparation._plan.loaded.model.state_dict()


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("order", ["random", "length"])
def test_losses_and_weights_are_those_of_headstarts_own_loop(
    make_rows: Callable[..., Any],
    make_trainer: Callable[..., Any],
    losses: Callable[[], Any],
    tiny_model_dir: Path,
    tmp_path: Path,
    accumulation: int,
    order: str,
) -> None:
    # 53 rows: 7 batches, the last one short; in threes the last update has one batch.
    train, validation = make_rows(53), make_rows(9, first=100)
    settings = {
        "model.checkpoint": str(tiny_model_dir),
        "train.batch_size": 8,
        "train.order": order,
        "train.seed": 5,
        "train.fast": False,
        "optim.learning_rate": 1e-3,
        "optim.warmup": 2,
    }
    theirs = {**settings, "train.accumulation": accumulation, "train.precision": "fp32", "train.epochs": 2}
    expected, weights = engine(train, validation, theirs, tmp_path / "run")
    kept = losses()
    data = TaskDataModule(
        train,
        validation=validation,
        model=str(tiny_model_dir),
        batch_size=8,
        seed=5,
        settings=[f"train.order={order}"],
    )
    module = TaskModule(learning_rate=1e-3, warmup=2, fast=False)
    make_trainer(max_epochs=2, accumulate_grad_batches=accumulation, callbacks=[kept]).fit(module, data)
    assert kept.losses == pytest.approx(expected, rel=1e-6)
    found = module.known_model.state_dict()
    assert found.keys() == weights.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-7)


@pytest.mark.slow  # the kernels are made first
@pytest.mark.parametrize(("precision", "word"), [("32-true", "fp32"), ("bf16-mixed", "bf16")])
def test_the_fast_path_makes_the_updates_of_headstarts_own(
    make_rows: Callable[..., Any],
    make_trainer: Callable[..., Any],
    losses: Callable[[], Any],
    tiny_model_dir: Path,
    tmp_path: Path,
    precision: str,
    word: str,
) -> None:
    train, validation = make_rows(40), make_rows(8, first=100)
    settings = {
        "model.checkpoint": str(tiny_model_dir),
        "train.batch_size": 8,
        "train.precision": word,
        "train.epochs": 1,
        "optim.learning_rate": 1e-3,
    }
    expected, _ = engine(train, validation, settings, tmp_path / "run")
    kept = losses()
    data = TaskDataModule(train, validation=validation, model=str(tiny_model_dir), batch_size=8)
    module = TaskModule(learning_rate=1e-3)
    trainer = make_trainer(max_epochs=1, precision=precision, callbacks=[kept])
    trainer.fit(module, data)
    assert kept.losses == pytest.approx(expected, rel=1e-5)
    assert "used" in module.fast_parts["gelu"]


WAYS: dict[str, list[str]] = {
    "adafactor": ["optim.name=adafactor", "optim.clip_threshold=2.0"],
    "nadam": ["optim.name=nadam", "optim.schedule=cosine_with_restarts", "optim.cycles=3"],
    "radam": ["optim.name=radam", "optim.schedule=inverse_sqrt", "optim.warmup=2"],
    "lion": ["optim.name=lion", "optim.schedule=one_cycle", "optim.layer_decay=0.5"],
    "adan": ["optim.name=adan", "optim.schedule=polynomial", "optim.power=3.0", "optim.end_factor=0.1"],
    "prodigy": ["optim.name=prodigy", "optim.learning_rate=1.0", "optim.d_coef=2.0"],
    "layers": ["optim.layer_decay=0.5", "model.freeze=embeddings"],
    "head": ["model.freeze=encoder"],
    "patterns": ['model.freeze=["*.bias"]', "optim.end_factor=0.5"],
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in ("lion", "head") else pytest.mark.slow) for n in WAYS]
)
def test_every_way_to_learn_makes_the_updates_of_headstarts_own(
    make_rows: Callable[..., Any],
    make_trainer: Callable[..., Any],
    losses: Callable[[], Any],
    tiny_model_dir: Path,
    tmp_path: Path,
    name: str,
) -> None:
    train, validation = make_rows(40), make_rows(8, first=100)
    settings = ["optim.learning_rate=1e-3", *WAYS[name]]
    given = build_recipe(settings=settings)
    common = {
        "model.checkpoint": str(tiny_model_dir),
        "train.batch_size": 8,
        "train.precision": "fp32",
        "train.fast": False,
        "train.epochs": 2,
    }
    own = {f"optim.{key}": getattr(given.optim, key) for key in given.optim.model_fields_set}
    own |= {f"model.{key}": getattr(given.model, key) for key in given.model.model_fields_set}
    expected, weights = engine(train, validation, {**common, **own}, tmp_path / "run")
    kept = losses()
    data = TaskDataModule(train, validation=validation, model=str(tiny_model_dir), batch_size=8)
    module = TaskModule(settings=settings, fast=False)
    make_trainer(max_epochs=2, callbacks=[kept]).fit(module, data)
    assert kept.losses == pytest.approx(expected, rel=1e-6)
    for key, tensor in module.known_model.state_dict().items():
        torch.testing.assert_close(tensor, weights[key], rtol=1e-5, atol=1e-7)
    frozen = [key for key, parameter in module.known_model.named_parameters() if not parameter.requires_grad]
    assert bool(frozen) == any("freeze" in setting for setting in settings)


def test_a_run_of_headstarts_own_loop_becomes_a_module_that_lightning_can_train(
    make_rows: Callable[..., Any], make_trainer: Callable[..., Any], tiny_model_dir: Path, tmp_path: Path
) -> None:
    train, validation = make_rows(24), make_rows(8, first=100)
    settings = ["optim.schedule=plateau", "model.unfreeze_every=2", "train.ema=0.9", "model.freeze=embeddings"]
    values = {"model.checkpoint": str(tiny_model_dir), "train.max_steps": 6, "output.run": str(tmp_path / "run")}
    preparation = prepare(
        {"train": train, "validation": validation},
        values={**values, "evaluate.baselines": False, "train.batch_size": 8},
        settings=settings,
    )
    for _ in preparation.train():
        pass
    preparation.finish()
    module = TaskModule.from_run(tmp_path / "run")
    assert module.recipe.model.freeze == "embeddings"
    before = {key: tensor.clone() for key, tensor in module.known_model.state_dict().items()}
    data = TaskDataModule(train, validation=validation, model=str(tiny_model_dir), batch_size=8)
    make_trainer(max_epochs=1).fit(module, data)
    changed = {key for key, tensor in module.known_model.state_dict().items() if not torch.equal(tensor, before[key])}
    assert changed and not any("embeddings" in key for key in changed)
