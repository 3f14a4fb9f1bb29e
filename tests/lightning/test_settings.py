"""Who decides what: data module, module and Trainer; and what is said where they contradict each other."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import EarlyStopping, GradientAccumulationScheduler, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from headstart.errors import CheckpointError, ColumnError, DataError, LabelError, RecipeError
from headstart.lightning import TaskDataModule, TaskModule, fast_precision, trainer_settings
from headstart.lightning.given import collect
from headstart.lightning.trainer_settings import check_trainer, precision_of
from headstart.recipe import build_recipe

Make = Callable[..., Any]

# A setting of the recipe, a Trainer that does something else, one that does it, and the argument that the error names.
MATTERS: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any], str]] = [
    ({"train.epochs": 3}, {"max_epochs": 2}, {"max_epochs": 3}, "max_epochs=3"),
    ({"train.max_steps": 7}, {"max_steps": 5}, {"max_steps": 7}, "max_steps=7"),
    ({"train.accumulation": 2}, {}, {"accumulate_grad_batches": 2}, "accumulate_grad_batches=2"),
    ({"train.precision": "bf16"}, {}, {"precision": "bf16-mixed"}, 'precision="bf16-mixed"'),
    ({"train.device": "cuda:1"}, {}, {}, 'accelerator="gpu", devices=[1]'),
    ({"train.processes": 2}, {}, {}, "devices=2"),
    ({"train.process_timeout": "5 minutes"}, {}, {}, "DDPStrategy"),
    ({"train.evaluate_every": "2 epochs"}, {}, {"check_val_every_n_epoch": 2}, "check_val_every_n_epoch=2"),
    ({"train.evaluate_every": "0.5 epochs"}, {}, {"val_check_interval": 0.5}, "val_check_interval=0.5"),
    (
        {"train.evaluate_every": 50},
        {},
        {"val_check_interval": 50, "check_val_every_n_epoch": None},
        "val_check_interval=BATCHES",
    ),
    ({"train.evaluate_every": None}, {}, {"limit_val_batches": 0}, "limit_val_batches=0"),
    (
        {"train.save_every": 100},
        {},
        {"enable_checkpointing": True, "callbacks": [ModelCheckpoint(every_n_train_steps=100)]},
        "every_n_train_steps=100",
    ),
    (
        {"train.save_every": None},
        {"enable_checkpointing": True, "callbacks": [ModelCheckpoint()]},
        {},
        "enable_checkpointing=False",
    ),
    (
        {"train.keep": 3},
        {},
        {"enable_checkpointing": True, "callbacks": [ModelCheckpoint(monitor="val_loss", save_top_k=3)]},
        "save_top_k=3",
    ),
    (
        {"train.best": "f1"},
        {},
        {"enable_checkpointing": True, "callbacks": [ModelCheckpoint(monitor="val_f1")]},
        'monitor="val_f1"',
    ),
    ({"train.patience": 2}, {}, {"callbacks": [EarlyStopping("val_loss", patience=2)]}, "patience=2"),
    ({"train.time_limit": "30 minutes"}, {}, {"max_time": {"minutes": 30}}, "max_time"),
    ({"train.on_non_finite": "skip"}, {}, {}, "leave it out"),
    ({"train.tokens_per_batch": 100}, {}, {}, "train.batch_size"),
    ({"train.fast": {"lazy_rows": True}}, {}, {}, "sparse"),
    ({"optim.max_grad_norm": 0.5}, {"gradient_clip_val": 1.0}, {}, "gradient_clip_val=0.5"),
    ({"train.ema": 0.99}, {}, {}, "EMAWeightAveraging(decay=0.99)"),
    ({"model.unfreeze_every": "1 epoch"}, {}, {}, "BaseFinetuning"),
    ({"optim.schedule": "plateau"}, {}, {}, "ReduceLROnPlateau"),
    ({"output.log_to": ["tensorboard"]}, {"logger": CSVLogger("logs")}, {}, "TensorBoardLogger"),
    ({"output.log_to": ["wandb"]}, {"logger": TensorBoardLogger("logs")}, {}, "WandbLogger"),
    ({"output.log_to": ["tensorboard", "mlflow"]}, {"logger": TensorBoardLogger("logs")}, {}, "MLFlowLogger"),
    ({"output.log_to": ["trackio"]}, {"logger": TensorBoardLogger("logs")}, {}, "leave it out"),
]
HAS_NO_ARGUMENT = {"train.device", "train.processes", "train.process_timeout", "train.on_non_finite", "output.log_to",
                   "train.tokens_per_batch", "train.fast", "train.ema", "model.unfreeze_every",
                   "optim.schedule"}  # fmt: skip


@pytest.mark.parametrize(("setting", "other", "same", "argument"), MATTERS, ids=lambda value: str(value)[:40])
def test_what_the_trainer_decides_is_compared(
    make_trainer: Make, setting: dict[str, Any], other: dict[str, Any], same: dict[str, Any], argument: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        check_trainer(setting, make_trainer(**other))
    assert argument in str(caught.value)
    if not setting.keys() & HAS_NO_ARGUMENT:
        check_trainer(setting, make_trainer(**same))


def test_the_trackers_of_a_recipe_are_the_loggers_of_a_trainer(make_trainer: Make) -> None:
    class WandbLogger(CSVLogger):
        """Stands in for Lightning's, which needs the library."""

    loggers = [TensorBoardLogger("logs"), WandbLogger("logs")]
    check_trainer({"output.log_to": ["tensorboard", "wandb"]}, make_trainer(logger=loggers))
    with pytest.raises(RecipeError, match=r"logger=\[TensorBoardLogger\(\.\.\.\), WandbLogger"):
        check_trainer({"output.log_to": ["tensorboard", "wandb"]}, make_trainer(logger=loggers[0]))


def test_all_differences_stand_in_one_message(make_rows: Make, make_trainer: Make, tiny_model_dir: Path) -> None:
    data = TaskDataModule(make_rows(20), model=str(tiny_model_dir), settings=["train.epochs=4", "train.patience=2"])
    module = TaskModule(settings=["train.accumulation=3"])
    with pytest.raises(RecipeError) as caught:
        make_trainer(max_epochs=1).fit(module, data)
    for words in ("max_epochs=4", "accumulate_grad_batches=3", "EarlyStopping"):
        assert words in str(caught.value)
    with pytest.warns(UserWarning, match="never trained"):
        make_trainer().validate(module, data, verbose=False)  # how long to train is nothing to it


def test_defaults_of_a_recipe_say_nothing_to_a_trainer(make_trainer: Make) -> None:
    whole = build_recipe().model_dump()
    check_trainer(collect(whole, [], {}), make_trainer(max_epochs=3))


def test_a_recipe_file_can_be_given_to_both(
    make_rows: Make, make_trainer: Make, tiny_model_dir: Path, tmp_path: Path
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(
        f"model:\n  checkpoint: {tiny_model_dir}\n  dropout: 0.2\ntrain:\n  batch_size: 4\n  epochs: 1\n  fast: false\n"
        "optim:\n  name: sgd\n  momentum: 0.5\n  learning_rate: 0.01\nevaluate:\n  scores: [f1]\n",
        encoding="utf-8",
    )
    data = TaskDataModule(make_rows(20), recipe=file)
    module = TaskModule(file, momentum=0.6)
    with pytest.raises(RecipeError, match=r"optim.momentum is 0.5 in TaskDataModule and 0.6 in TaskModule"):
        make_trainer(max_epochs=1).fit(module, data)
    module = TaskModule(file)
    trainer = make_trainer(max_epochs=1)
    trainer.fit(module, data)
    assert trainer.optimizers[0].param_groups[0]["momentum"] == 0.5
    assert module.known_model.config.hidden_dropout_prob == 0.2
    assert module.scores == ["f1"]
    assert trainer.num_training_batches == 5


def test_what_the_data_module_decides_is_not_taken_from_the_module(
    make_rows: Make, make_trainer: Make, tiny_model_dir: Path
) -> None:
    data = TaskDataModule(make_rows(20), model=str(tiny_model_dir))
    with pytest.raises(RecipeError, match=r"train.seed is 7 in TaskModule, but 0 in TaskDataModule"):
        make_trainer(max_epochs=1).fit(TaskModule(seed=7), data)
    with pytest.raises(RecipeError, match=r"model.checkpoint is .* in TaskDataModule and 'other' in TaskModule"):
        make_trainer(max_epochs=1).fit(TaskModule(model="other"), data)


@pytest.mark.parametrize("is_fast", [True, False])
def test_fast_precision_is_what_the_hardware_multiplies(
    is_fast: bool, monkeypatch: pytest.MonkeyPatch, make_trainer: Make
) -> None:
    monkeypatch.setattr(trainer_settings, "has_fast_bfloat16", lambda device_type: is_fast)
    trainer = make_trainer(precision=fast_precision())
    assert precision_of(trainer) == ("bf16" if is_fast else "fp32")


@pytest.mark.parametrize("precision", ["16-true", "bf16-true", "64-true"])
def test_a_precision_that_headstart_does_not_train_in_is_refused(
    make_rows: Make, make_trainer: Make, tiny_model_dir: Path, precision: str
) -> None:
    data = TaskDataModule(make_rows(20), model=str(tiny_model_dir))
    with pytest.raises(RecipeError, match="bf16-mixed"):
        make_trainer(max_epochs=1, precision=precision).fit(TaskModule(), data)


def test_accumulation_that_changes_on_the_way_is_refused(
    make_rows: Make, make_trainer: Make, tiny_model_dir: Path
) -> None:
    data = TaskDataModule(make_rows(20), model=str(tiny_model_dir))
    trainer = make_trainer(max_epochs=2, callbacks=[GradientAccumulationScheduler({0: 1, 1: 2})])
    with pytest.raises(RecipeError, match="accumulate_grad_batches=4"):
        trainer.fit(TaskModule(), data)


def test_a_training_without_an_end_needs_a_constant_rate(
    make_rows: Make, make_trainer: Make, tiny_model_dir: Path
) -> None:
    data = TaskDataModule(make_rows(20), model=str(tiny_model_dir))
    endless = {"max_epochs": -1, "max_time": {"seconds": 0}}
    with pytest.raises(RecipeError, match='schedule="constant"'):
        make_trainer(**endless).fit(TaskModule(fast=False), data)
    make_trainer(**endless).fit(TaskModule(fast=False, schedule="constant"), data)


def test_mistakes_with_rows_are_said_in_words(make_rows: Make, make_trainer: Make, tiny_model_dir: Path) -> None:
    model = str(tiny_model_dir)
    with pytest.raises(RecipeError, match="no source"):
        TaskDataModule()
    with pytest.raises(RecipeError, match="no such key"):
        TaskDataModule(make_rows(20), settings=["train.batchsize=3"])
    with pytest.raises(ColumnError, match="comment"):
        make_trainer(max_epochs=1).fit(TaskModule(), TaskDataModule(make_rows(20), model=model, text="comment"))
    with pytest.raises(RecipeError, match="at most 128 tokens"):
        make_trainer(max_epochs=1).fit(TaskModule(), TaskDataModule(make_rows(20), model=model, max_length=500))
    with pytest.raises(DataError, match="no test rows"):
        make_trainer().test(TaskModule(), TaskDataModule(make_rows(20), model=model))
    unlabelled = [{"text": "the film", "label": None}] * 3
    with pytest.raises(DataError, match="no labels to score"):
        make_trainer().test(TaskModule(), TaskDataModule(make_rows(20), model=model, test=unlabelled))
    with pytest.raises(RecipeError, match="neither a TaskDataModule nor a task"):
        make_trainer().validate(TaskModule(), [1])
    with pytest.raises(CheckpointError, match="not trained"):
        TaskModule().save_run("runs/x", TaskDataModule(make_rows(20), model=model))


def test_rows_with_other_labels_than_the_model_are_refused(
    make_rows: Make, make_trainer: Make, tiny_model_dir: Path
) -> None:
    module = TaskModule(fast=False)
    make_trainer(fast_dev_run=True).fit(module, TaskDataModule(make_rows(20), model=str(tiny_model_dir)))
    others = [{**row, "label": f"very {row['label']}"} for row in make_rows(20)]
    with pytest.raises(LabelError, match="very bad, very good"):
        make_trainer().validate(module, TaskDataModule(others, model=str(tiny_model_dir)))


def test_a_place_is_good_for_the_same_batches_only(make_rows: Make, tiny_model_dir: Path) -> None:
    first = TaskDataModule(make_rows(20), model=str(tiny_model_dir), batch_size=4).train_dataloader()
    other = TaskDataModule(make_rows(20), model=str(tiny_model_dir), batch_size=5, seed=1).train_dataloader()
    with pytest.raises(CheckpointError, match=r"train.batch_size was 4, is 5\n.*train.seed was 0, is 1"):
        other.load_state_dict(first.state_dict())


def test_headstart_does_not_import_lightning_and_says_where_it_is_missing() -> None:
    code = """
import sys
import headstart, headstart.api, headstart.cli.main, headstart.parts.planned_loader
assert "lightning" not in sys.modules
class Missing:
    def find_spec(self, name, *rest):
        return None
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "lightning" else find(name, *rest)
try:
    import headstart.lightning
except ImportError as error:
    assert isinstance(error, headstart.HeadstartError)
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'headstart[lightning]'" in done.stdout, done.stderr


def test_clipping_by_value_is_refused(make_rows: Make, make_trainer: Make, tiny_model_dir: Path) -> None:
    data = TaskDataModule(make_rows(20), model=str(tiny_model_dir))
    trainer = make_trainer(max_epochs=1, gradient_clip_val=0.5, gradient_clip_algorithm="value")
    with pytest.raises(RecipeError, match="clips each number"):
        trainer.fit(TaskModule(), data)


def test_intervals_of_time_and_shares(make_trainer: Make) -> None:
    def faults(given: dict[str, Any], **settings: Any) -> str:
        try:
            check_trainer(given, make_trainer(max_epochs=1, **settings))
        except RecipeError as error:
            return str(error)
        return ""

    every_ten = {"val_check_interval": timedelta(minutes=10), "check_val_every_n_epoch": None}
    assert faults({"train.evaluate_every": "10 minutes"}, **every_ten) == ""
    assert "timedelta(minutes=5)" in faults({"train.evaluate_every": "5 minutes"}, **every_ten)
    assert "check_val_every_n_epoch=2" in faults({"train.evaluate_every": "2 epochs"}, **every_ten)
    assert "no share of a training" in faults({"train.evaluate_every": "5%"})
    saves = {"enable_checkpointing": True, "callbacks": [ModelCheckpoint(train_time_interval=timedelta(minutes=30))]}
    assert faults({"train.save_every": "30 minutes"}, **saves) == ""
    assert "train_time_interval=timedelta(minutes=5)" in faults({"train.save_every": "5 minutes"}, **saves)
    assert "no share of a training" in faults({"train.save_every": "5%"}, **saves)
