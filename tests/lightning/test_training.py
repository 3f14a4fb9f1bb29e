"""What a fit does with each option, and what it logs."""

from __future__ import annotations

import copy
import json
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from headstart.errors import NonFiniteError, RecipeError
from headstart.lightning import TaskDataModule, TaskModule
from headstart.metrics import compute_scores
from headstart.training.schedules import learning_rate_factor

Make = Callable[..., Any]


@pytest.fixture
def make_data(make_rows: Make, tiny_model_dir: Path) -> Make:
    def make(number: int = 40, **settings: Any) -> TaskDataModule:
        settings = {"validation": make_rows(11, 100), "test": make_rows(13, 200), "batch_size": 8, **settings}
        return TaskDataModule(make_rows(number), model=str(tiny_model_dir), **settings)

    return make


def plain(**settings: Any) -> TaskModule:
    return TaskModule(**{"learning_rate": 1e-3, "fast": False, **settings})


def test_scores_are_of_all_rows_together(make_data: Make, make_trainer: Make) -> None:
    data, module, trainer = make_data(settings=["evaluate.batch_size=4"]), plain(), make_trainer(max_epochs=1)
    trainer.fit(module, data)
    shown = {name: float(value) for name, value in trainer.callback_metrics.items()}
    [validated] = trainer.validate(module, data, verbose=False)
    [tested] = trainer.test(module, data, verbose=False)
    probabilities = torch.cat(trainer.predict(module, data)).numpy()
    targets = data.data.splits["test"].targets
    expected = compute_scores(["accuracy", "f1", "log_loss"], targets, probabilities)
    for name, value in expected.items():
        assert tested[f"test_{name}"] == pytest.approx(value, abs=1e-6)
    assert tested["test_loss"] == pytest.approx(expected["log_loss"], abs=1e-6)
    assert {name: value for name, value in shown.items() if name.startswith("val_")} == pytest.approx(validated)


def test_predictions_stand_in_the_order_of_the_rows(make_data: Make, make_trainer: Make) -> None:
    data, module, trainer = make_data(settings=["evaluate.batch_size=4"]), plain(), make_trainer()
    with pytest.warns(UserWarning, match="new head that was never trained"):
        batches = trainer.predict(module, data)
    assert [len(batch) for batch in batches] == [4, 4, 4, 1]
    rows = data.rows("test")
    module.eval()
    for index, probabilities in enumerate(torch.cat(batches)):
        with torch.no_grad():
            logits = module.known_model(**{k: v for k, v in rows.collate([index]).items() if k != "labels"}).logits
        torch.testing.assert_close(probabilities, logits.softmax(-1)[0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("limit", [3, 0.5])
def test_updates_of_a_cut_epoch_count_the_rows_they_have(
    make_data: Make, make_trainer: Make, losses: Make, limit: float
) -> None:
    data, kept = make_data(48, settings=["train.order=sequential"]), losses()  # 6 batches
    module = plain(dropout=0.0, optimizer="sgd", learning_rate=1e-30)
    trainer = make_trainer(max_epochs=1, limit_train_batches=limit, accumulate_grad_batches=2, callbacks=[kept])
    trainer.fit(module, data)
    rows, task = data.rows("train"), data.task
    expected = []
    for numbers in (range(16), range(16, 24)):
        batch = rows.collate(list(numbers))
        with torch.no_grad():
            expected.append(float(task.loss(task.run(module.known_model, batch, "train"), batch)) / len(numbers))
    assert kept.losses == pytest.approx(expected, rel=1e-5)


def test_overfit_batches_sees_the_same_rows_in_every_epoch(make_data: Make, make_trainer: Make) -> None:
    data = make_data()
    seen: list[list[int]] = []

    class Watching(TaskModule):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            seen.append(batch.dealt.rows.tolist())

    make_trainer(max_epochs=3, overfit_batches=1).fit(Watching(fast=False), data)
    assert len(seen) == 3
    assert seen[0] == seen[1] == seen[2]


def test_epochs_have_orders_of_their_own_and_every_row_once(make_data: Make, make_trainer: Make) -> None:
    seen: list[list[int]] = [[], []]

    class Watching(TaskModule):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            seen[self.current_epoch] += batch.dealt.rows.tolist()

    make_trainer(max_epochs=2, reload_dataloaders_every_n_epochs=1).fit(Watching(fast=False), make_data())
    assert sorted(seen[0]) == sorted(seen[1]) == list(range(40))
    assert seen[0] != seen[1]


def test_learning_rate_goes_the_way_of_the_recipe(make_data: Make, make_trainer: Make, losses: Make) -> None:
    kept = losses()
    module = plain(schedule="cosine", warmup="1 epoch")
    make_trainer(max_epochs=3, callbacks=[kept]).fit(module, make_data())
    factors = [learning_rate_factor(step, total_steps=15, warmup_steps=5, schedule="cosine") for step in range(15)]
    assert kept.rates == pytest.approx([1e-3 * factor for factor in factors])


def test_learning_rate_that_nobody_names_follows_from_the_rows_of_an_update(
    make_data: Make, make_trainer: Make
) -> None:
    rates = []
    for accumulation in (1, 4):
        module = TaskModule(fast=False, schedule="constant")
        trainer = make_trainer(max_steps=1, accumulate_grad_batches=accumulation)
        trainer.fit(module, make_data())
        rates.append(trainer.optimizers[0].param_groups[0]["lr"])
    assert rates[1] == pytest.approx(2 * rates[0], rel=0.02)


def test_sgd_has_its_momentum_and_weight_decay(make_data: Make, make_trainer: Make) -> None:
    trainer = make_trainer(fast_dev_run=True)
    trainer.fit(plain(optimizer="sgd", momentum=0.7, weight_decay=0.03), make_data())
    [optimizer] = trainer.optimizers
    assert isinstance(optimizer, torch.optim.SGD)
    assert [group["momentum"] for group in optimizer.param_groups] == [0.7, 0.7]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.03, 0.0]


@pytest.mark.parametrize(
    ("recipe_norm", "trainer_norm", "expected"), [(0.01, None, 0.01), (None, 0.02, 0.02), (0.01, 0.01, 0.01)]
)
def test_gradients_are_clipped_as_the_trainer_says_else_as_the_recipe(
    make_data: Make, make_trainer: Make, recipe_norm: float | None, trainer_norm: float | None, expected: float
) -> None:
    norms: list[float] = []

    class Watching(TaskModule):
        def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            super().optimizer_step(*args, **kwargs)
            gradients = [p.grad for p in self.known_model.parameters() if p.grad is not None]
            norms.append(float(torch.nn.utils.get_total_norm(gradients)))

    settings = [] if recipe_norm is None else [f"optim.max_grad_norm={recipe_norm}"]
    trainer = make_trainer(max_steps=2, gradient_clip_val=trainer_norm)
    trainer.fit(Watching(fast=False, settings=settings), make_data())
    assert norms == pytest.approx([expected] * 2, rel=1e-3)


def test_no_update_is_made_where_gradients_are_not_finite(make_data: Make, make_trainer: Make) -> None:
    class Broken(TaskModule):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return super().training_step(batch, batch_idx) * float("nan")

    module = Broken(fast=False)
    with pytest.raises(NonFiniteError, match="Step 0"):
        make_trainer(max_epochs=1).fit(module, make_data())
    assert all(torch.isfinite(parameter).all() for parameter in module.known_model.parameters())


def test_dropout_and_seed_reach_the_model(make_data: Make, make_trainer: Make) -> None:
    heads = []
    for seed in (1, 2):
        module = plain(dropout=0.3)
        make_trainer(fast_dev_run=True).fit(module, make_data(seed=seed))
        assert module.known_model.config.hidden_dropout_prob == 0.3
        heads.append(module.known_model.classifier.weight.detach().clone())
    assert not torch.allclose(heads[0], heads[1])


def test_early_stopping_and_the_best_checkpoint_watch_the_scores(make_data: Make, make_trainer: Make) -> None:
    best = ModelCheckpoint("best", monitor="val_accuracy", mode="max", filename="{epoch}-{val_accuracy:.2f}")
    stop = EarlyStopping("val_accuracy", mode="max", patience=1)
    trainer = make_trainer(max_epochs=9, enable_checkpointing=True, callbacks=[best, stop])
    trainer.fit(plain(learning_rate=1e-12), make_data())
    assert trainer.current_epoch == 2  # nothing is learned, so the second epoch is not better
    assert "val_accuracy=0." in best.best_model_path
    assert float(best.best_model_score) == float(trainer.callback_metrics["val_accuracy"])


def test_loggers_get_losses_rates_and_scores(make_data: Make, make_trainer: Make) -> None:
    loggers = [TensorBoardLogger("tb"), CSVLogger("csv")]
    trainer = make_trainer(
        max_epochs=1, logger=loggers, log_every_n_steps=1, num_sanity_val_steps=2, callbacks=[LearningRateMonitor()]
    )
    trainer.fit(plain(), make_data())
    assert list(Path("tb").rglob("events*"))
    header = next(Path("csv").rglob("metrics.csv")).read_text().splitlines()[0].split(",")
    assert {"train_loss", "learning_rate", "val_loss", "val_accuracy", "learning_rate/pg1"} <= set(header)
    assert "optim.learning_rate" not in header


def test_fast_dev_run_writes_and_decides_nothing(make_data: Make, make_trainer: Make) -> None:
    trainer = make_trainer(fast_dev_run=True, enable_checkpointing=True, logger=True)
    trainer.fit(plain(settings=["train.epochs=5", "train.patience=2"]), make_data())
    assert trainer.global_step == 1


def test_the_fast_path_is_there_while_fitting_and_gone_after(make_data: Make, make_trainer: Make) -> None:
    used: list[bool] = []

    class Watching(TaskModule):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            used.append("used" in self.fast_parts["gelu"].split()[0])

    module = Watching(settings=["train.fast={attention: false}"])
    make_trainer(fast_dev_run=True).fit(module, make_data())
    assert used == [True]
    assert module.fast_parts["attention"] == "not used: switched off"
    assert module.fast_parts["lazy_rows"].startswith("not used")
    assert all(parameter.dtype == torch.float32 for parameter in module.known_model.parameters())
    copy.deepcopy(module.known_model)


def test_workers_put_the_same_batches_together(make_data: Make) -> None:
    plain_batches = list(make_data(num_workers=0).train_dataloader())
    by_workers = list(make_data(num_workers=1).train_dataloader())
    assert len(plain_batches) == len(by_workers) == 5
    for one, other in zip(plain_batches, by_workers, strict=True):
        assert torch.equal(one.tensors["input_ids"], other.tensors["input_ids"])


def test_modules_can_be_pickled_before_and_after_reading(make_data: Make, make_trainer: Make) -> None:
    data, module = make_data(), plain()
    expected = [batch.dealt.rows.tolist() for batch in data.train_dataloader()]
    for _ in range(2):
        again, model = pickle.loads(pickle.dumps((data, module)))
        assert [batch.dealt.rows.tolist() for batch in again.train_dataloader()] == expected
        assert model.given == module.given
        make_trainer(fast_dev_run=True).fit(module, data)


def test_another_module_can_take_the_rows(make_data: Make, make_trainer: Make) -> None:
    class Own(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(2))

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            assert batch.tensors["input_ids"].device == self.device
            return torch.nn.functional.cross_entropy(
                self.weight.expand(len(batch.tensors["labels"]), 2), batch.tensors["labels"]
            )

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            assert batch.dealt.num_counted == len(batch.tensors["labels"])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    make_trainer(max_epochs=1).fit(Own(), datamodule=make_data())


def test_rows_of_a_dataloader_of_ones_own_do_with_a_task(make_data: Make, make_trainer: Make) -> None:
    data = make_data()
    rows = data.rows("train")
    loader = torch.utils.data.DataLoader(rows, batch_size=8, collate_fn=rows.collate)
    module = plain(task=data.task, model=data.recipe.model.checkpoint)
    trainer = make_trainer(max_epochs=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The '.*_dataloader' does not have many workers")
        trainer.fit(module, loader, loader)
    assert trainer.global_step == 5
    assert 0 <= float(trainer.callback_metrics["val_accuracy"]) <= 1


def test_loaders_can_be_given_without_their_data_module(make_data: Make, make_trainer: Make) -> None:
    data = make_data()
    module = plain(task=data.task, model=data.recipe.model.checkpoint)
    trainer = make_trainer(max_epochs=1)
    trainer.fit(module, data.train_dataloader(), data.val_dataloader())
    assert trainer.global_step == 5
    shown = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val")}
    [validated] = make_trainer().validate(module, data, verbose=False)
    assert shown == pytest.approx(validated)


def test_columns_are_those_that_are_named(tiny_pair_csv: Path, tiny_model_dir: Path) -> None:
    named = {"text": "sentence2", "pair": "sentence1", "label": "label", "task": "sequence_classification"}
    task = TaskDataModule(tiny_pair_csv, model=str(tiny_model_dir), **named).task
    assert (task.text, task.pair, task.label) == ("sentence2", "sentence1", "label")
    looked_for = TaskDataModule(tiny_pair_csv, model=str(tiny_model_dir)).task
    assert (looked_for.text, looked_for.pair) == ("sentence1", "sentence2")


def test_threads_are_set_where_the_recipe_says(make_data: Make, make_trainer: Make) -> None:
    make_trainer(fast_dev_run=True).fit(plain(settings=["train.threads=2"]), make_data())
    assert torch.get_num_threads() == 2


def test_limit_is_drawn_and_said_once(make_data: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("headstart.lightning.data_module.rank_zero_info", said.append)
    data = make_data(limit="50%", max_length=8)
    data.prepare_data()
    data.prepare_data()
    assert len(set(said)) == len(said)
    assert any("training rows limited to 20" in message for message in said)
    assert any("of 20 rows are longer than the limit of 8 tokens" in message for message in said)
    assert len(data.rows("train")) == 20
    assert np.asarray(data.rows("train").lengths).max() == 8


def test_rows_sorted_by_label_are_shuffled_and_that_is_said(
    make_rows: Make, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("headstart.lightning.data_module.rank_zero_info", said.append)
    rows = sorted(make_rows(80), key=lambda row: str(row["label"]))
    data = TaskDataModule(rows, model=str(tiny_model_dir), batch_size=8)
    data.prepare_data()
    assert "headstart: train: the rows are sorted by label; training shuffles them" in said
    assert any("stratified" in message for message in said)
    labels = [batch.tensors["labels"].float().mean().item() for batch in data.train_dataloader()]
    assert all(0 < mean < 1 for mean in labels)


def test_batches_that_were_planned_for_another_trainer_are_refused(make_data: Make, make_trainer: Make) -> None:
    data = make_data()
    data.setup("fit")
    module = plain(task=data.task, model=data.checkpoint)
    with pytest.raises(RecipeError, match=r"planned for other numbers[^$]*trainer.fit\(module, data\)"):
        make_trainer(max_epochs=1, accumulate_grad_batches=4).fit(
            module, data.train_dataloader(), data.val_dataloader()
        )
    with pytest.raises(RecipeError, match="planned for other numbers"):
        make_trainer(max_epochs=1, limit_train_batches=3).fit(module, data.train_dataloader(), data.val_dataloader())


def test_a_fit_that_ends_with_an_error_leaves_an_ordinary_model_and_can_be_saved(
    make_data: Make, make_trainer: Make
) -> None:
    class Fails(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
            if trainer.global_step == 3:
                raise OSError("disk")

    data, module = make_data(), TaskModule(learning_rate=1e-3)
    with pytest.raises(OSError, match="disk"):
        make_trainer(max_epochs=2, callbacks=[Fails()]).fit(module, data)
    assert module._optimization is None
    run = module.save_run("runs/failed", data)
    assert "which made 3 of 10 updates" in (run.run_dir / "log.jsonl").read_text()


def test_what_nobody_reads_beside_an_own_module_is_refused(make_data: Make, make_trainer: Make) -> None:
    class Own(LightningModule):
        def training_step(self, batch: Any, batch_index: int) -> None:
            return None

        def validation_step(self, batch: Any, batch_index: int) -> None:
            return None

        def configure_optimizers(self) -> None:
            return None

    with pytest.raises(RecipeError, match=r"given model\.dropout, model\.freeze, optim\.name"):
        settings = ["optim.name=sgd", "model.dropout=0.2", "model.freeze=embeddings"]
        make_trainer(max_epochs=1).fit(Own(), make_data(settings=settings))
    with pytest.raises(RecipeError, match=r"accumulate_grad_batches=4"):
        make_trainer(max_epochs=1).fit(Own(), make_data(settings=["train.accumulation=4"]))


def test_a_validation_file_may_be_a_path(make_rows: Make, tmp_path: Path) -> None:
    file = tmp_path / "more.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in make_rows(6, 100)), encoding="utf-8")
    assert len(TaskDataModule(make_rows(10), validation=file).data.splits["validation"].rows) == 6


def test_training_rows_of_a_recipe_go_with_validation_rows_in_memory(make_rows: Make, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in make_rows(10)), encoding="utf-8")
    data = TaskDataModule(validation=make_rows(6, 100), settings=[f"data.train={file}"])
    assert {name: len(split.rows) for name, split in data.data.splits.items()} == {"train": 10, "validation": 6}
