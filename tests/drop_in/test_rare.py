"""What is rare in a training and must be right all the same: batches without targets, means of means, full disks."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import RandomSampler
from transformers import EarlyStoppingCallback, TrainerCallback

import headstart
from headstart.errors import CheckpointError
from headstart.training.device import choose_device, join_processes
from joined import join, start_joined
from small_trainer import OURS, THEIRS, Asks, Small, Stream, make_rows, start, train


class Tagger(Small):
    """A label for each token."""

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = self.head(self.norm(self.embedding(input_ids)))
        if labels is None:
            return {"logits": logits}
        return {"loss": torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}


def tagged(count: int, *without: int) -> list[dict[str, Any]]:
    rows = [{**row, "labels": [each % 3 for each in row["input_ids"]]} for row in make_rows(count)]
    for index in without:
        rows[index]["labels"] = [-100] * len(rows[index]["labels"])
    return rows


def parameters_of(run: Any) -> list[list[float]]:
    return [parameter.flatten().tolist() for parameter in run.trainer.model.parameters()]


def logged(run: Any, name: str) -> list[float]:
    return [line[name] for line in run.trainer.state.log_history if name in line]


@pytest.mark.parametrize("without", [(1,), (0, 2), (0, 1, 2, 3)])
def test_a_micro_batch_without_targets_adds_nothing(without: tuple[int, ...], tmp_path: Path) -> None:
    """One row a batch, four an update; the same rows in one batch."""
    shared = {"train_sampling_strategy": "sequential", "logging_steps": 1, "num_train_epochs": 1, "max_grad_norm": 0}
    rows = tagged(8, *without)
    parts = train(
        OURS, tmp_path / "parts", model=Tagger(), rows=rows, per_device_train_batch_size=1,
        gradient_accumulation_steps=4, **shared,
    )  # fmt: skip
    if len(without) < 4:
        whole = train(OURS, tmp_path / "whole", model=Tagger(), rows=rows, **shared)
        assert parts.losses == pytest.approx(whole.losses, rel=1e-5)
    else:
        assert parts.losses[0] == 0.0 and parts.losses[1] > 0


@pytest.mark.parametrize("overridden", [("compute_loss",), ("compute_loss", "training_step"), ("training_step",)])
@pytest.mark.parametrize("hands_on", [True, False])
def test_a_loss_of_ones_own_is_divided_once(overridden: tuple[str, ...], hands_on: bool, tmp_path: Path) -> None:
    """However many of the methods are overridden, and with the signature of today or of old."""

    class Own(headstart.Trainer):
        if "compute_loss" in overridden:

            def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **others: Any) -> Any:
                outputs = model(**inputs)
                return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

        if "training_step" in overridden and hands_on:

            def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
                return super().training_step(model, inputs, num_items_in_batch)

        elif "training_step" in overridden:

            def training_step(self, model: Any, inputs: Any) -> Any:
                return super().training_step(model, inputs)

    shared = {"train_sampling_strategy": "sequential", "logging_steps": 1, "num_train_epochs": 1, "max_grad_norm": 0}
    split = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    expected = train(OURS, tmp_path / "usual", rows=make_rows(16), **shared, **split)
    side = type(OURS)("own", Own, OURS.arguments)
    found = train(side, tmp_path, rows=make_rows(16), **shared, **split)
    assert found.losses == pytest.approx(expected.losses, rel=1e-6)
    norms = [
        [line["grad_norm"] for line in run.trainer.state.log_history if "loss" in line] for run in (found, expected)
    ]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def test_a_sampler_of_some_of_the_rows_keeps_their_number(tmp_path: Path) -> None:
    class Own(headstart.Trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return RandomSampler(self.train_dataset, num_samples=8)

    run = train(type(OURS)("own", Own, OURS.arguments), tmp_path, num_train_epochs=1)
    assert run.output.global_step == 2


class KeepsStateInGroups(torch.optim.SGD):
    """Makes smaller and smaller steps, and counts them where no tensor is."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["count"] = group.get("count", 0) + 1
            group["lr"] = 0.1 / group["count"]
        return super().step(closure)


def test_what_an_optimizer_keeps_in_its_groups_is_gone_on_with(tmp_path: Path) -> None:
    given = {"optimizer_cls_and_kwargs": (KeepsStateInGroups, {"lr": 0.1})}
    options = {"given": given, "save_strategy": "steps", "save_steps": 5, "lr_scheduler_type": "constant"}
    whole = train(OURS, tmp_path, **options)
    again = train(OURS, tmp_path, resume=str(whole.folder / "checkpoint-5"), **options)
    assert parameters_of(again) == parameters_of(whole)
    assert again.trainer.optimizer.param_groups[0]["count"] == 16


def test_a_best_checkpoint_that_cannot_be_written_costs_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full from the second checkpoint on, and the second is the best."""
    usage = shutil.disk_usage(tmp_path)
    calls: list[Path] = []

    def fills(path: Path) -> Any:
        calls.append(path)
        return usage if len(calls) == 1 else usage._replace(free=1000)

    monkeypatch.setattr(shutil, "disk_usage", fills)
    options = {"save_strategy": "steps", "save_steps": 4, "eval_strategy": "steps", "eval_steps": 4}
    run = train(OURS, tmp_path, load_best_model_at_end=True, save_total_limit=1, **options)
    assert run.output.global_step == 16 and len(calls) > 2
    assert run.trainer.state.best_model_checkpoint == str(run.folder / "checkpoint-4")
    assert [path.name for path in run.folder.glob("checkpoint-*")] == ["checkpoint-4"]


def test_a_checkpoint_that_cannot_be_removed_costs_space_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any, **options: Any) -> None:
        raise OSError("busy")

    saved: list[int] = []

    class Saves(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            saved.append(state.global_step)
            if len(saved) == 1:
                monkeypatch.setattr("headstart.drop_in.training_progress.discard_folder", refuse)

    run = train(OURS, tmp_path, callbacks=lambda: [Saves()], save_strategy="steps", save_steps=4, save_total_limit=1)
    assert saved == [4, 8, 12, 16] and run.output.global_step == 16


def test_a_checkpoint_with_another_head_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification

    other = AutoModelForMaskedLM.from_pretrained(tiny_model_dir)
    other.save_pretrained(tmp_path / "checkpoint-4")
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model_dir)
    run = start(OURS, tmp_path, model=model)
    with pytest.raises(CheckpointError, match="does not fit this model"):
        run.trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


@pytest.mark.parametrize("lost", ["manifest.json", "headstart_state.json", "model.safetensors"])
def test_a_checkpoint_that_lacks_a_file_is_passed_over(
    lost: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"save_strategy": "steps", "save_steps": 4}
    whole = train(OURS, tmp_path, **options)
    (whole.folder / "checkpoint-16" / lost).unlink()
    again = train(OURS, tmp_path, resume=True, **options)
    assert any("checkpoint-16 is not whole and was passed over" in record.message for record in caplog.records)
    assert parameters_of(again) == parameters_of(whole)


def test_half_a_checkpoint_of_transformers_is_passed_over(tmp_path: Path) -> None:
    """transformers writes the history last."""
    options = {"save_strategy": "steps", "save_steps": 4}
    theirs = train(THEIRS, tmp_path, **options)
    (theirs.folder / "checkpoint-16" / "trainer_state.json").unlink()
    theirs.folder.rename(tmp_path / "ours")
    again = start(OURS, tmp_path, **options)
    assert again.trainer._newest_checkpoint(str(again.folder)).name == "checkpoint-12"


def test_a_checkpoint_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no such folder"):
        train(OURS, tmp_path, resume=str(tmp_path / "checkpiont-4"))


def test_a_signal_in_the_last_step_is_not_lost(tmp_path: Path) -> None:
    class Interrupts(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            if state.global_step == state.max_steps:
                os.kill(os.getpid(), signal.SIGINT)

    run = start(OURS, tmp_path, callbacks=lambda: [Interrupts()], save_strategy="steps", save_steps=500, max_steps=3)
    with pytest.raises(KeyboardInterrupt, match="step 3"):
        run.trainer.train()
    assert (run.folder / "checkpoint-3" / "model.safetensors").exists()
    assert run.trainer.state.log_history[-1]["train_loss"] > 0


def test_evaluating_at_the_start_is_for_the_start(tmp_path: Path) -> None:
    options = {
        "eval_on_start": True, "eval_strategy": "steps", "eval_steps": 4, "save_strategy": "steps", "save_steps": 4,
        "load_best_model_at_end": True,
    }  # fmt: skip
    callbacks = {"callbacks": lambda: [EarlyStoppingCallback(20)]}
    whole = train(OURS, tmp_path, **options, **callbacks)
    again = train(OURS, tmp_path, resume=str(whole.folder / "checkpoint-8"), **options, **callbacks)
    losses = [
        [line["eval_loss"] for line in run.trainer.state.log_history if "eval_loss" in line] for run in (whole, again)
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 5


def test_two_callbacks_of_one_kind_go_on_each_from_its_own_count(tmp_path: Path) -> None:
    options = {
        "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2, "learning_rate": 0.0,
        "metric_for_best_model": "loss", "load_best_model_at_end": True,
    }  # fmt: skip

    def make() -> list[Any]:
        return [EarlyStoppingCallback(30), EarlyStoppingCallback(40)]

    whole = train(OURS, tmp_path, callbacks=make, **options)
    again = train(OURS, tmp_path, resume=str(whole.folder / "checkpoint-8"), callbacks=make, **options)
    counts = []
    for run in (whole, again):
        kept = [each for each in run.trainer.callback_handler.callbacks if isinstance(each, EarlyStoppingCallback)]
        counts.append([each.early_stopping_patience_counter for each in kept])
    assert counts[0] == counts[1] == [7, 7]


def test_another_evaluation_set_is_seen_where_workers_stay(tmp_path: Path) -> None:
    run = start(OURS, tmp_path, dataloader_num_workers=1, dataloader_persistent_workers=True)
    first = run.trainer.evaluate()["eval_loss"]
    run.trainer.eval_dataset = make_rows(10, seed=9)
    other = run.trainer.evaluate()["eval_loss"]
    assert other != first
    assert run.trainer.evaluate(make_rows(10, seed=1))["eval_loss"] == pytest.approx(first)


@pytest.mark.parametrize("what", ["strategy", "method", "stream"])
def test_what_decides_the_order_instead_of_fast_is_said(
    what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Own(headstart.Trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return super()._get_train_sampler(train_dataset)

    side = type(OURS)("own", Own, OURS.arguments) if what == "method" else OURS
    options: dict[str, Any] = {"strategy": {"train_sampling_strategy": "sequential"}, "method": {}, "stream": {}}[what]
    if what == "stream":
        options = {"rows": Stream(make_rows(12)), "max_steps": 2}
    train(side, tmp_path, headstart="fast", **options)
    assert [record.message for record in caplog.records if 'headstart="fast"' in record.message]


def test_a_model_that_is_spread_over_devices_stays_where_it_is(tmp_path: Path) -> None:
    moved: list[Any] = []

    class Spread(Small):
        hf_device_map = {"": "cpu"}  # noqa: RUF012

        def to(self, *given: Any, **options: Any) -> Any:
            moved.append(given)
            return super().to(*given, **options)

    run = train(OURS, tmp_path, model=Spread(), max_steps=1)
    run.trainer.evaluate()
    assert not moved


def test_a_callback_stops_without_a_signal(tmp_path: Path) -> None:
    run = train(OURS, tmp_path, callbacks=lambda: [Asks("on_step_end", 3, should_training_stop=True)])
    assert run.output.global_step == 3


def test_processes_find_each_other_after_a_trainer_of_one(tmp_path: Path) -> None:
    """A script that trains alone first: accelerate has noted that there is one process."""
    start(OURS, tmp_path)

    def work(rank: int) -> int:
        device = choose_device("cpu", "fp32", threads=1)
        processes = join_processes(device, timeout_seconds=60, for_one_run=True)
        (total,) = processes.add([rank + 1])
        processes.close()
        return 0 if total == 3 else 5

    assert join(start_joined(2, work, tmp_path / "joined")) == [0, 0]
