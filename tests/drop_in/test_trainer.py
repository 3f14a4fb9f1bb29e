"""headstart's Trainer against transformers' own: what scripts call, override, hand in and get back."""

from __future__ import annotations

import gc
import inspect
import json
import logging
import multiprocessing
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F
from transformers import EvalPrediction
from transformers.trainer_utils import SchedulerType

import headstart
from headstart.errors import HeadstartError, HeadstartWarning
from recording import difference, without_times
from small_trainer import (
    BOTH,
    NUM_CLASSES,
    OURS,
    THEIRS,
    VOCABULARY,
    Rows,
    Run,
    Side,
    Small,
    Stream,
    make_arguments,
    make_bert,
    make_rows,
    start,
    train,
)

TRAINER_LOG = "headstart.drop_in.trainer"


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEADSTART", "TENSORBOARD_LOGGING_DIR"):
        monkeypatch.delenv(name, raising=False)


class Tagger(nn.Module):
    """A label for each token, and outputs besides the logits."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.embedding = nn.Embedding(VOCABULARY, 8)
            self.head = nn.Linear(8, NUM_CLASSES)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        hidden = self.embedding(input_ids)
        outputs = {"logits": self.head(hidden), "hidden": hidden}
        if labels is not None:
            loss = F.cross_entropy(outputs["logits"].flatten(0, 1), labels.flatten(), ignore_index=-100)
            return {"loss": loss, **outputs}
        return outputs


def tagged_rows(count: int = 10) -> list[dict[str, Any]]:
    """Rows of 2 to 7 tokens."""
    lengths = [2 + index * 5 % 6 for index in range(count)]
    ids = [row["input_ids"] * 2 for row in make_rows(count, seed=5)]
    return [
        {"input_ids": row[:length], "labels": [each % NUM_CLASSES for each in row[:length]]}
        for row, length in zip(ids, lengths, strict=True)
    ]


class TaggerOfLibrary(Tagger):
    """With a configuration, without which transformers takes no label smoothing."""

    config = SimpleNamespace(problem_type=None)


class SmallOfLibrary(Small):
    """The same."""

    config = SimpleNamespace(problem_type=None)


def pad(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    length = max(len(row["input_ids"]) for row in rows)
    fillers = {"input_ids": 0, "labels": -100}
    return {
        name: torch.tensor([row[name] + [filler] * (length - len(row[name])) for row in rows])
        for name, filler in fillers.items()
        if name in rows[0]
    }


def plain(value: Any) -> Any:
    """Give arrays as lists, with what they are."""
    if isinstance(value, EvalPrediction):
        parts = {name: getattr(value, name) for name in ("predictions", "label_ids", "inputs", "losses")}
        return {name: plain(part) for name, part in parts.items()}
    if isinstance(value, torch.Tensor | np.ndarray):
        return [type(value).__name__, str(value.dtype), list(value.shape), value.tolist()]
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [type(value).__name__, *(plain(part) for part in value)]
    return value


def assert_equal(ours: Any, theirs: Any, tolerance: float = 1e-6) -> None:
    nowhere = Path("no folder")
    found = difference(without_times(plain(ours), nowhere), without_times(plain(theirs), nowhere), tolerance)
    assert found is None, found


def assert_same_training(ours: Run, theirs: Run, tolerance: float = 1e-6) -> None:
    """The same lines of the history and the same model."""
    assert_equal(ours.trainer.state.log_history, theirs.trainer.state.log_history, tolerance)
    assert_same_weights(ours.trainer.model, theirs.trainer.model, tolerance)


def assert_same_weights(ours: nn.Module, theirs: nn.Module, tolerance: float = 1e-6) -> None:
    weights = theirs.state_dict()
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(tensor, weights[name], rtol=10 * tolerance, atol=tolerance, msg=name)


def train_both(tmp_path: Path, *, tolerance: float = 1e-6, make_model: Any = Small, **options: Any) -> tuple[Run, Run]:
    ours, theirs = (train(side, tmp_path, model=make_model(), **options) for side in BOTH)
    assert_same_training(ours, theirs, tolerance)
    return ours, theirs


def lines_of(caplog: pytest.LogCaptureFixture, logger: str = TRAINER_LOG) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == logger]


# The surface


def test_the_constructor_takes_what_that_of_transformers_takes_and_tokenizer() -> None:
    ours, theirs = (inspect.signature(side.trainer.__init__).parameters for side in BOTH)
    assert list(ours) == [*theirs, "tokenizer"]
    assert [ours[name].default for name in theirs] == [each.default for each in theirs.values()]
    assert [ours[name].kind for name in theirs] == [each.kind for each in theirs.values()]
    assert ours["tokenizer"].default is None


NOT_THERE = {"get_batch_samples": "the plan knows which batches make up an update; overriding it is said"}


def test_every_public_method_is_there_or_has_a_reason() -> None:
    public = {name for name in dir(transformers.Trainer) if not name.startswith("_")}
    missing = {name for name in public if not hasattr(headstart.Trainer, name)}
    assert missing == set(NOT_THERE)


def test_every_public_method_takes_the_same_arguments() -> None:
    for name in dir(transformers.Trainer):
        theirs, ours = getattr(transformers.Trainer, name), getattr(headstart.Trainer, name, None)
        if name.startswith("_") or not inspect.isroutine(theirs) or ours is None:
            continue
        parameters = inspect.signature(ours).parameters
        if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values()):
            continue  # hands everything on
        assert list(parameters) == list(inspect.signature(theirs).parameters), name


def test_attributes_that_scripts_read(tmp_path: Path) -> None:
    runs = [train(side, tmp_path, eval_strategy="epoch", gradient_accumulation_steps=2) for side in BOTH]
    for name in (
        "label_names",
        "can_return_loss",
        "model_accepts_loss_kwargs",
        "is_in_train",
        "hp_name",
        "hub_model_id",
        "place_model_on_device",
        "is_model_parallel",
        "is_deepspeed_enabled",
        "is_fsdp_enabled",
        "neftune_noise_alpha",
        "label_smoother",
        "current_gradient_accumulation_steps",
        "compute_loss_func",
        "_train_batch_size",
    ):
        ours, theirs = (getattr(run.trainer, name) for run in runs)
        assert ours == theirs, name
    for run in runs:
        trainer = run.trainer
        assert trainer.model is trainer.model_wrapped
        assert trainer.accelerator.unwrap_model(trainer.model) is trainer.model
        assert trainer.is_world_process_zero() and trainer.is_local_process_zero()
        assert trainer.args.output_dir == str(run.folder)
    assert_equal(*(run.trainer.get_learning_rates() for run in runs))
    assert_equal(*(run.trainer.get_num_trainable_parameters() for run in runs))


def test_train_gives_what_transformers_gives(tmp_path: Path) -> None:
    ours, theirs = train_both(tmp_path, eval_strategy="epoch")
    assert type(ours.output) is type(theirs.output)
    assert_equal(ours.output._asdict(), theirs.output._asdict())


def test_nothing_given_but_a_model_and_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No arguments: the folder, the batch size and the number of epochs of transformers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    results = [OURS.trainer(Small(), train_dataset=make_rows(9)).train()]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*pin_memory")
        results.append(THEIRS.trainer(Small(), train_dataset=make_rows(9)).train())
    assert results[0].global_step == results[1].global_step == 6
    assert results[0].training_loss == pytest.approx(results[1].training_loss, rel=1e-6)


# Evaluation


def evaluations(
    tmp_path: Path, *, make_model: Callable[[], Any] = Tagger, rows: Any = None, given: Any = None, **options: Any
) -> list[dict[str, Any]]:
    """Evaluate and predict with both, and keep what the user's function was given."""
    results = []
    rows = tagged_rows() if rows is None else rows
    for side in BOTH:
        seen: list[Any] = []

        def metrics(prediction: EvalPrediction, seen: list[Any] = seen) -> dict[str, Any]:
            seen.append(plain(prediction))
            return {"count": len(seen), "array": np.float32(1.5)}

        keywords = {"compute_metrics": metrics, "data_collator": pad, **(given or {})}
        trainer = start(side, tmp_path, model=make_model(), evaluated=rows, given=keywords, **options).trainer
        evaluated = trainer.evaluate()
        prediction = trainer.predict(rows)
        results.append({"evaluated": evaluated, "predicted": prediction._asdict(), "seen": seen})
        assert type(prediction).__name__ == "PredictionOutput"
    assert_equal(*results)
    return results


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"include_for_metrics": ["inputs"]},
        {"include_for_metrics": ["loss"]},
        {"include_for_metrics": ["inputs", "loss"]},
        {"eval_accumulation_steps": 1},
        {"eval_accumulation_steps": 2, "include_for_metrics": ["inputs", "loss"]},
        {"eval_do_concat_batches": False},
        {"eval_do_concat_batches": False, "eval_accumulation_steps": 1, "include_for_metrics": ["inputs", "loss"]},
        {"prediction_loss_only": True},
        {"per_device_eval_batch_size": 64},
        {"per_device_eval_batch_size": 1},
        {"dataloader_drop_last": True},
        {"bf16_full_eval": True},
        {"bf16": True},
        {"label_smoothing_factor": 0.1},
        {"eval_use_gather_object": True},
    ],
    ids=lambda options: " ".join(f"{name}={value}" for name, value in options.items()) or "defaults",
)
def test_evaluation_options(options: dict[str, Any], tmp_path: Path) -> None:
    """Rows of several lengths: batches of several widths are padded with -100 to one array."""
    evaluations(tmp_path, make_model=TaggerOfLibrary, **options)


def test_predictions_keep_the_order_of_the_rows_where_evaluation_is_grouped(tmp_path: Path) -> None:
    """transformers gives them in the order of the groups: a file of predictions would be scrambled."""
    predictions = []
    for strategy in ("random", "group_by_length"):
        options = {"train_sampling_strategy": strategy, "per_device_eval_batch_size": 1, "evaluated": tagged_rows()}
        run = start(OURS, tmp_path / strategy, model=Tagger(), given={"data_collator": pad}, **options)
        predictions.append(run.trainer.predict(tagged_rows()).label_ids.tolist())
    assert predictions[0] == predictions[1]


@pytest.mark.parametrize("batch_size", [3, 5])
def test_metrics_by_batch(batch_size: int, tmp_path: Path) -> None:
    results = []
    for side in BOTH:
        seen: list[Any] = []

        def metrics(
            prediction: EvalPrediction, compute_result: bool, seen: list[Any] = seen
        ) -> dict[str, float] | None:
            seen.append([plain(prediction.predictions), plain(prediction.label_ids), compute_result])
            seen.append(plain(dict(prediction.inputs)))
            return {"batches": len(seen)} if compute_result else {}

        run = start(
            side,
            tmp_path,
            model=Tagger(),
            evaluated=tagged_rows(),
            given={"compute_metrics": metrics, "data_collator": pad},
            batch_eval_metrics=True,
            include_for_metrics=["inputs", "loss"],
            per_device_eval_batch_size=batch_size,
        )
        evaluated = run.trainer.evaluate()
        results.append([evaluated, run.trainer.predict(tagged_rows(7))._asdict(), seen])
    assert_equal(*results)
    assert results[0][0]["eval_batches"] > 0


def test_logits_are_preprocessed(tmp_path: Path) -> None:
    def best(logits: Any, labels: torch.Tensor) -> torch.Tensor:
        assert labels.shape == logits[0].shape[:2]
        return logits[0].argmax(-1)

    results = evaluations(tmp_path, given={"preprocess_logits_for_metrics": best})
    assert results[0]["predicted"]["predictions"].shape == (10, 7)


def test_outputs_are_ignored_and_keys_prefixed(tmp_path: Path) -> None:
    results = []
    for side in BOTH:
        trainer = start(
            side, tmp_path, model=Tagger(), evaluated=tagged_rows(), given={"data_collator": pad}, eval_strategy="epoch"
        ).trainer
        evaluated = trainer.evaluate(ignore_keys=["hidden"], metric_key_prefix="final")
        predicted = trainer.predict(tagged_rows(3), ignore_keys=["hidden"], metric_key_prefix="last")
        both = trainer.predict(tagged_rows(3))
        results.append([evaluated, predicted._asdict(), both._asdict()])
    assert_equal(*results)
    assert "final_loss" in results[0][0] and "last_loss" in results[0][1]["metrics"]
    assert isinstance(results[0][1]["predictions"], np.ndarray) and isinstance(results[0][2]["predictions"], tuple)


def test_ignored_outputs_during_training(tmp_path: Path) -> None:
    shapes = []
    for side in BOTH:
        seen: list[Any] = []

        def metrics(prediction: EvalPrediction, seen: list[Any] = seen) -> dict[str, float]:
            seen.append(type(prediction.predictions).__name__)
            return {}

        given = {"data_collator": pad, "compute_metrics": metrics}
        options = {"rows": tagged_rows(), "evaluated": tagged_rows(), "given": given, "eval_strategy": "epoch"}
        start(side, tmp_path, model=Tagger(), **options).trainer.train(ignore_keys_for_eval=["hidden"])
        shapes.append(seen)
    assert shapes[0] == shapes[1] == ["ndarray", "ndarray"]


def test_predicting_without_labels(tmp_path: Path) -> None:
    unlabelled = [{"input_ids": row["input_ids"]} for row in tagged_rows()]
    results = evaluations(tmp_path, rows=unlabelled)
    assert results[0]["predicted"]["label_ids"] is None
    assert "test_loss" not in results[0]["predicted"]["metrics"]


def test_several_evaluation_sets(tmp_path: Path) -> None:
    results = []
    for side in BOTH:
        several = {"near": make_rows(10, seed=1), "far": datasets.Dataset.from_list(make_rows(7, seed=2))}
        trainer = start(side, tmp_path, evaluated=several).trainer
        results.append([trainer.evaluate(), trainer.evaluate({"own": make_rows(3)}), trainer.evaluate("far")])
    assert_equal(*results)
    assert {"eval_near_loss", "eval_far_loss"} <= set(results[0][0])


class Pairs(nn.Module):
    """A model with targets under two names of its own, and one that computes a loss without any."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([0.5, 2.0]))

    def forward(self, x: torch.Tensor, start: Any = None, end: Any = None, return_loss: bool | None = None) -> Any:
        logits = (self.scale[0] * x, self.scale[1] * x)
        if start is not None and end is not None:
            return {"loss": ((logits[0] - start) ** 2 + (logits[1] - end) ** 2).mean(), "a": logits[0], "b": logits[1]}
        if return_loss:
            return {"loss": (logits[0] ** 2).mean(), "a": logits[0]}
        return {"a": logits[0], "b": logits[1]}


def test_label_names(tmp_path: Path) -> None:
    rows = [{"x": float(n), "start": 2.0 * n, "end": 3.0 * n, "note": 1.0} for n in range(10)]
    results = []
    for side in BOTH:
        run = train(
            side,
            tmp_path,
            model=Pairs(),
            rows=rows,
            evaluated=rows,
            label_names=["start", "end"],
            eval_strategy="epoch",
        )
        results.append([run.trainer.state.log_history, run.trainer.predict(rows)._asdict()])
    assert_equal(*results)
    assert isinstance(results[0][1]["label_ids"], tuple)


def test_a_loss_without_labels(tmp_path: Path) -> None:
    rows = [{"x": float(n), "return_loss": True} for n in range(10)]

    def collate(batch: list[dict[str, Any]]) -> dict[str, Any]:
        return {"x": torch.tensor([row["x"] for row in batch]), "return_loss": True}

    results = []
    for side in BOTH:
        given = {"data_collator": collate}
        run = train(side, tmp_path, model=Pairs(), rows=rows, evaluated=rows, given=given, eval_strategy="epoch")
        results.append([run.trainer.state.log_history, run.trainer.predict(rows)._asdict()])
    assert_equal(*results)


def test_the_parts_of_an_evaluation_can_be_called(tmp_path: Path) -> None:
    results = []
    for side in BOTH:
        trainer = start(side, tmp_path, model=Small()).trainer
        loader = trainer.get_eval_dataloader()
        output = trainer.evaluation_loop(loader, "Evaluation", metric_key_prefix="mine")
        batch = next(iter(trainer.get_test_dataloader(make_rows(3))))
        step = trainer.prediction_step(trainer.model, batch, False)
        loss = trainer.compute_loss(trainer.model, trainer._prepare_inputs(dict(batch)))
        lengths = [len(loader), len(trainer.get_train_dataloader()), trainer.num_examples(loader)]
        results.append([output._asdict(), step, loss.item(), lengths])
    assert_equal(*results)


# Options of a training

SCHEDULES: dict[str, dict[str, Any]] = {
    "polynomial": {"lr_scheduler_kwargs": {"power": 2.0}},
    "cosine_with_restarts": {"lr_scheduler_kwargs": {"num_cycles": 2}},
    "cosine_with_min_lr": {"lr_scheduler_kwargs": {"min_lr": 1e-3}},
    "cosine_warmup_with_min_lr": {"lr_scheduler_kwargs": {"min_lr_rate": 0.1}},
    "warmup_stable_decay": {"lr_scheduler_kwargs": {"num_decay_steps": 4}},
    "reduce_lr_on_plateau": {"metric_for_best_model": "loss", "eval_strategy": "steps", "eval_steps": 2},
    "greedy": {"metric_for_best_model": "loss", "eval_strategy": "steps", "eval_steps": 2},
}


@pytest.mark.parametrize("name", [kind.value for kind in SchedulerType])
def test_every_schedule(name: str, tmp_path: Path) -> None:
    options = {"warmup_steps": 3, "logging_steps": 1, **SCHEDULES.get(name, {})}
    train_both(tmp_path, lr_scheduler_type=name, **options)


OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw_torch": {"adam_beta1": 0.8, "adam_beta2": 0.95, "adam_epsilon": 1e-6},
    "adamw_torch_fused": {},
    "adafactor": {},
    "sgd": {},
    "adagrad": {},
    "rmsprop": {},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name: str, tmp_path: Path) -> None:
    train_both(tmp_path, optim=name, logging_steps=1, weight_decay=0.1, **OPTIMIZERS[name])


@pytest.mark.parametrize(
    "options",
    [
        {"max_grad_norm": 0.0},
        {"max_grad_norm": 0.05},
        {"weight_decay": 0.3},
        {"label_smoothing_factor": 0.2},
        {"seed": 7},
        {"data_seed": 5},
        {"train_sampling_strategy": "sequential"},
        {"dataloader_drop_last": True},
        {"num_train_epochs": 1.3},
        {"warmup_steps": 0.25},
        {"bf16": True},
        {"full_determinism": True},
    ],
    ids=str,
)
def test_options_of_training(options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "full_determinism" in options:
        for name in ("CUDA_LAUNCH_BLOCKING", "CUBLAS_WORKSPACE_CONFIG", "ASCEND_LAUNCH_BLOCKING", "HCCL_DETERMINISTIC"):
            monkeypatch.setenv(name, "")
        monkeypatch.setenv("FLASH_ATTENTION_DETERMINISTIC", "")
    try:
        train_both(tmp_path, make_model=SmallOfLibrary, logging_steps=1, **options)
    finally:
        torch.use_deterministic_algorithms(False)


def test_label_smoothing_of_tokens_and_of_a_model_of_the_library(tiny_model_dir: Path, tmp_path: Path) -> None:
    train_both(
        tmp_path / "tokens",
        make_model=TaggerOfLibrary,
        rows=tagged_rows(20),
        given={"data_collator": pad},
        label_smoothing_factor=0.2,
    )
    train_both(
        tmp_path / "bert", make_model=lambda: make_bert(tiny_model_dir), label_smoothing_factor=0.2, logging_steps=1
    )


def lengths_trained_on(tmp_path: Path, count: int = 64, **options: Any) -> list[list[int]]:
    """Give the lengths of the rows of each batch; rows are known by their position."""
    batches: list[list[int]] = []

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batches.append([len(row["input_ids"]) for row in rows])
        return pad(rows)

    given = {"data_collator": collate}
    run = train(OURS, tmp_path, model=Tagger(), given=given, **{"rows": tagged_rows(count), **options})
    assert len(batches) == run.output.global_step == count // 2
    first_epoch = [length for lengths in batches[: count // 4] for length in lengths]
    assert sorted(first_epoch) == sorted(len(row["input_ids"]) for row in tagged_rows(count))
    return batches


def spread_of(batches: list[list[int]]) -> float:
    """Give how far the lengths in a batch lie apart, on the mean of the batches."""
    return float(np.mean([max(lengths) - min(lengths) for lengths in batches]))


def test_group_by_length(tmp_path: Path) -> None:
    """transformers draws the order from the global stream: other batches, grouped by the same sampler."""
    random = lengths_trained_on(tmp_path / "random")
    grouped = lengths_trained_on(tmp_path / "grouped", train_sampling_strategy="group_by_length")
    assert spread_of(grouped) < 1 < spread_of(random)
    assert grouped[:16] != grouped[16:]
    # The longest row comes first, so that memory that does not suffice is found out at once.
    assert max(grouped[0]) == max(max(lengths) for lengths in grouped)
    assert lengths_trained_on(tmp_path / "again", train_sampling_strategy="group_by_length") == grouped


def test_group_by_a_column_of_lengths(tmp_path: Path) -> None:
    """A column that says nothing about the lengths groups by what it says."""
    sizes = [index % 4 for index in range(64)]
    table = datasets.Dataset.from_list(
        [{**row, "size": size} for row, size in zip(tagged_rows(64), sizes, strict=True)]
    )
    trainer = start(
        OURS, tmp_path, model=Tagger(), rows=table, train_sampling_strategy="group_by_length", length_column_name="size"
    ).trainer
    rows = list(trainer.get_train_dataloader().sampler)
    found = [[sizes[row] for row in rows[at : at + 4]] for at in range(0, 64, 4)]
    assert spread_of(found) < 1


def test_weight_decay_leaves_out_biases_and_norms(tiny_model_dir: Path, tmp_path: Path) -> None:
    groups = []
    for side in BOTH:
        model = make_bert(tiny_model_dir)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        trainer = start(side, tmp_path, model=model, weight_decay=0.3).trainer
        trainer.create_optimizer_and_scheduler(num_training_steps=10)
        groups.append(
            [
                [group["weight_decay"], sorted(names[id(parameter)] for parameter in group["params"])]
                for group in trainer.optimizer.param_groups
            ]
        )
    assert groups[0] == groups[1]
    assert [decay for decay, _ in groups[0]] == [0.3, 0.0]


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_change_nothing(persistent: bool, tmp_path: Path) -> None:
    ours = [
        train(
            OURS,
            tmp_path / str(workers),
            logging_steps=1,
            model=Small(dropout=0.3),
            dataloader_num_workers=workers,
            dataloader_persistent_workers=persistent and bool(workers),
            eval_strategy="epoch",
        )
        for workers in (0, 2)
    ]
    assert_equal(*(run.trainer.state.log_history for run in ours), tolerance=0.0)


@pytest.mark.parametrize(("kind", "persistent"), [("rows", False), ("rows", True), ("stream", False), ("stream", True)])
def test_workers_end_with_the_training(kind: str, persistent: bool, tmp_path: Path) -> None:
    """Left to the garbage collector, each of them takes five seconds."""
    before = set(multiprocessing.active_children())
    run = train(
        OURS,
        tmp_path,
        rows=make_rows(12) if kind == "rows" else Stream(make_rows(12)),
        dataloader_num_workers=2 if kind == "rows" else 1,
        dataloader_persistent_workers=persistent,
        max_steps=5,
    )
    assert set(multiprocessing.active_children()) <= before
    assert run.output.global_step == 5


def test_persistent_workers_of_evaluations_end_by_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they do not, PyTorch waits for seconds and then ends them."""
    ended: list[Any] = []
    terminate = multiprocessing.process.BaseProcess.terminate

    def end(process: Any) -> None:
        ended.append(process)
        terminate(process)

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "terminate", end)
    before = set(multiprocessing.active_children())
    run = train(
        OURS,
        tmp_path,
        dataloader_num_workers=1,
        dataloader_persistent_workers=True,
        eval_strategy="steps",
        eval_steps=4,
    )
    assert len(set(multiprocessing.active_children()) - before) <= 1
    del run
    gc.collect()
    assert set(multiprocessing.active_children()) <= before
    assert not ended


def test_noise_in_the_embeddings(tiny_model_dir: Path, tmp_path: Path) -> None:
    """NEFTune is there in training only, and is a function of the seed."""
    without, first, second = (
        train(OURS, tmp_path / str(index), model=make_bert(tiny_model_dir), neftune_noise_alpha=alpha, logging_steps=1)
        for index, alpha in enumerate((None, 5.0, 5.0))
    )
    assert first.losses == second.losses
    assert first.losses[0] != without.losses[0]
    embeddings = first.trainer.model.get_input_embeddings()
    assert not embeddings._forward_hooks
    ids = torch.arange(5, 9)[None]
    with torch.no_grad():
        assert torch.equal(embeddings.train()(ids), embeddings(ids))


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("name", ["activation_checkpointing", "gradient_checkpointing"])
def test_activations_computed_again_have_the_same_dropout(name: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    plain_run, again = (
        train(OURS, tmp_path / str(on), model=make_bert(tiny_model_dir, 0.3), logging_steps=1, **{name: on})
        for on in (False, True)
    )
    assert len(set(again.losses)) > 1
    assert_same_training(again, plain_run)


def test_activations_computed_again_without_dropout_are_those_of_transformers(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    train_both(
        tmp_path,
        make_model=lambda: make_bert(tiny_model_dir),
        activation_checkpointing=True,
        activation_checkpointing_kwargs={"use_reentrant": False},
        num_train_epochs=1,
    )


# Files


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"save_total_limit": 1},
        pytest.param({"save_total_limit": 2}, marks=pytest.mark.slow),
        {"save_total_limit": 1, "load_best_model_at_end": True},
        {"save_total_limit": 2, "load_best_model_at_end": True},
        pytest.param({"save_total_limit": 3, "load_best_model_at_end": True}, marks=pytest.mark.slow),
        pytest.param({"save_total_limit": 2, "metric_for_best_model": "loss"}, marks=pytest.mark.slow),
        {"save_only_model": True},
        {"save_strategy": "best", "metric_for_best_model": "loss"},
        {"save_strategy": "best", "metric_for_best_model": "loss", "save_total_limit": 1},
    ],
    ids=str,
)
def test_the_checkpoints_that_stay(options: dict[str, Any], tmp_path: Path) -> None:
    """A rate at which the loss goes down and up again, so that the best is neither the first nor the last."""
    values = {
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "learning_rate": 0.3,
    }
    runs = [train(side, tmp_path, **{**values, **options}) for side in BOTH]
    folders = [[path for path in names_in(run.folder) if path.startswith("checkpoint")] for run in runs]
    assert folders[0] == folders[1]
    assert folders[0]
    states = []
    for run in runs:
        newest = max(run.folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
        state = json.loads((newest / "trainer_state.json").read_text())
        states.append(without_times(state, run.folder))
    assert_equal(*states)
    assert_same_weights(runs[0].trainer.model, runs[1].trainer.model)


def test_saving_the_model_alone_leaves_out_the_optimizer(tmp_path: Path) -> None:
    run = train(OURS, tmp_path, save_only_model=True, save_strategy="epoch")
    assert not [path for path in run.folder.rglob("*optimizer*")]
    assert (run.folder / "checkpoint-8" / "model.safetensors").exists()


def test_files_of_a_model_are_those_that_from_pretrained_reads(tiny_model_dir: Path, tmp_path: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_model_dir)
    runs = [
        train(
            side,
            tmp_path,
            model=make_bert(tiny_model_dir),
            given={"processing_class": tokenizer},
            max_steps=2,
            save_strategy="steps",
            save_steps=2,
        )
        for side in BOTH
    ]
    for run in runs:
        run.trainer.save_model()
        run.trainer.save_model(str(run.folder / "elsewhere"))
    pickled = {"optimizer.pt", "rng_state.pth", "scheduler.pt", "training_args.bin"}
    for place in (".", "elsewhere", "checkpoint-2"):
        ours, theirs = (set(names_in(run.folder / place)) for run in runs)
        assert theirs - pickled <= ours, place
        assert not ours & pickled
    for place in ("", "elsewhere", "checkpoint-2"):
        loaded = transformers.AutoModelForSequenceClassification.from_pretrained(runs[0].folder / place)
        assert_same_weights(loaded, runs[1].trainer.model)
        assert len(transformers.AutoTokenizer.from_pretrained(runs[0].folder / place)) == len(tokenizer)


def test_metrics_and_state_are_written_as_in_transformers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files, printed = [], []
    for side in BOTH:
        run = train(side, tmp_path)
        metrics = {"train_loss": 0.25, "train_runtime": 3.5, "epoch": 2.0, "total_flos": 2.0**30}
        capsys.readouterr()
        run.trainer.log_metrics("train", metrics)
        printed.append(capsys.readouterr().out)
        run.trainer.save_metrics("train", metrics)
        run.trainer.save_metrics("eval", {"eval_loss": 1.0})
        run.trainer.save_state()
        assert type(run.trainer).metrics_format(metrics)["epoch"] == 2.0
        names = ("all_results.json", "train_results.json", "eval_results.json", "trainer_state.json")
        files.append([without_times(json.loads((run.folder / name).read_text()), run.folder) for name in names])
    assert printed[0] == printed[1]
    assert_equal(*files)


def test_a_model_card_is_written(tiny_model_dir: Path, tmp_path: Path) -> None:
    cards = []
    for side in BOTH:
        run = train(side, tmp_path, model=make_bert(tiny_model_dir), eval_strategy="epoch")
        run.trainer.create_model_card(model_name="mine", language="en", tasks="text-classification", tags=["a"])
        card = (run.folder / "README.md").read_text(encoding="utf-8")
        cards.append([line for line in card.splitlines() if "untime" not in line and "per_second" not in line])
    assert cards[0] == cards[1]
    assert any("mine" in line for line in cards[0])


# Overriding


def subclass(side: Side, **methods: Any) -> Side:
    return Side(side.name, type("Mine", (side.trainer,), methods), side.arguments)


def both_subclasses(make: Callable[[type], dict[str, Any]]) -> list[Side]:
    return [subclass(side, **make(side.trainer)) for side in BOTH]


def weighted(outputs: Any, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(outputs["logits"], labels, weight=torch.tensor([1.0, 2.0, 3.0]))


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_loss_of_the_user_that_is_a_mean(accumulation: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With accumulation a mean of means, as in transformers: also of micro-batches of 4 and of 2 rows."""

    def compute_loss(
        self: Any, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = weighted(outputs, labels)
        return (loss, outputs) if return_outputs else loss

    options = {"gradient_accumulation_steps": accumulation, "logging_steps": 1, "eval_strategy": "epoch"}
    sides = both_subclasses(lambda base: {"compute_loss": compute_loss})
    runs = [train(side, tmp_path, model=Small(), **options) for side in sides]
    assert_same_training(runs[0], runs[1])
    assert any("compute_loss is overridden" in line for line in lines_of(caplog))


def test_a_loss_of_the_user_with_the_older_signature(tmp_path: Path) -> None:
    """Scripts for transformers 4 know nothing of num_items_in_batch."""

    def older(self: Any, model: nn.Module, inputs: Any, return_outputs: bool = False) -> Any:
        outputs = model(input_ids=inputs["input_ids"])
        loss = weighted(outputs, inputs["labels"])
        return (loss, outputs) if return_outputs else loss

    def newer(self: Any, model: nn.Module, inputs: Any, return_outputs: bool = False, **others: Any) -> Any:
        return older(self, model, inputs, return_outputs)

    options = {"gradient_accumulation_steps": 3, "logging_steps": 1, "eval_strategy": "epoch"}
    ours = train(subclass(OURS, compute_loss=older), tmp_path, model=Small(), **options)
    theirs = train(subclass(THEIRS, compute_loss=newer), tmp_path, model=Small(), **options)
    assert_same_training(ours, theirs)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_loss_of_the_user_that_divides_by_the_number_of_targets(
    accumulation: int, tiny_model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Exact: an update of 4, 4 and 2 rows has the loss of a batch of 10."""

    def compute_loss(
        self: Any, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        outputs = model(input_ids=inputs["input_ids"])
        loss = F.cross_entropy(outputs.logits, inputs["labels"], reduction="sum")
        loss = loss / (len(inputs["labels"]) if num_items_in_batch is None else num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    options = {"gradient_accumulation_steps": accumulation, "logging_steps": 1, "eval_strategy": "epoch"}
    runs = [
        train(subclass(side, compute_loss=compute_loss), tmp_path, model=make_bert(tiny_model_dir), **options)
        for side in BOTH
    ]
    assert_same_training(runs[0], runs[1], tolerance=1e-5)
    assert not [line for line in lines_of(caplog) if "compute_loss" in line]


def test_a_loss_of_the_user_that_calls_that_of_the_trainer(tmp_path: Path) -> None:
    def make(base: type) -> dict[str, Any]:
        def compute_loss(self: Any, model: nn.Module, inputs: Any, *given: Any, **others: Any) -> Any:
            result = base.compute_loss(self, model, inputs, *given, **others)  # type: ignore[attr-defined]
            return (2 * result[0], *result[1:]) if isinstance(result, tuple) else 2 * result

        return {"compute_loss": compute_loss}

    options = {"gradient_accumulation_steps": 2, "rows": make_rows(32), "logging_steps": 1, "eval_strategy": "epoch"}
    runs = [train(side, tmp_path, model=Small(), **options) for side in both_subclasses(make)]
    assert_same_training(runs[0], runs[1], tolerance=1e-5)


def test_compute_loss_func_that_divides_by_the_number_of_targets(tmp_path: Path) -> None:
    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        total = F.cross_entropy(outputs["logits"], labels, reduction="sum")
        return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)

    options = {"gradient_accumulation_steps": 3, "logging_steps": 1, "eval_strategy": "epoch"}
    train_both(tmp_path, given={"compute_loss_func": loss}, tolerance=1e-5, **options)


def test_compute_loss_func_that_is_a_mean_counts_each_row_alike(tmp_path: Path) -> None:
    """transformers adds the means up, so that its update is as many times too large as it has micro-batches."""

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        return F.cross_entropy(outputs["logits"], labels)

    values = {"given": {"compute_loss_func": loss}, "logging_steps": 1, "train_sampling_strategy": "sequential"}
    split = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3}
    parts, theirs = (train(side, tmp_path / "parts", model=Small(), **values, **split) for side in BOTH)
    whole = train(OURS, tmp_path / "whole", model=Small(), **values, per_device_train_batch_size=12)
    # 12, 12 and 6 rows; in parts of 4, 4, 4; 4, 4, 4; 4 and 2
    assert parts.losses == pytest.approx(whole.losses, rel=1e-5)
    assert_same_weights(parts.trainer.model, whole.trainer.model, tolerance=1e-5)
    assert theirs.losses[0] == pytest.approx(3 * parts.losses[0], rel=1e-5)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_training_step_overridden(accumulation: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One that calls the Trainer's, and changes the gradients behind it."""

    def make(base: type) -> dict[str, Any]:
        def training_step(self: Any, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Any:
            loss = base.training_step(self, model, inputs, num_items_in_batch)  # type: ignore[attr-defined]
            for parameter in model.parameters():
                parameter.grad.add_(0.01 * parameter.detach())
            return loss

        return {"training_step": training_step}

    options = {"gradient_accumulation_steps": accumulation, "rows": make_rows(32), "logging_steps": 1}
    runs = [train(side, tmp_path, model=Small(), **options) for side in both_subclasses(make)]
    assert_same_training(runs[0], runs[1], tolerance=1e-5)
    assert any("training_step is overridden" in line for line in lines_of(caplog))


def test_training_step_with_a_backward_pass_of_its_own(tmp_path: Path) -> None:
    def training_step(self: Any, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Any:
        model.train()
        inputs = self._prepare_inputs(inputs)
        with self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs) / self.args.gradient_accumulation_steps
        self.accelerator.backward(loss)
        return loss.detach()

    sides = both_subclasses(lambda base: {"training_step": training_step})
    runs = [
        train(side, tmp_path, model=Small(), rows=make_rows(32), gradient_accumulation_steps=2, logging_steps=1)
        for side in sides
    ]
    assert_same_training(runs[0], runs[1], tolerance=1e-5)


def own_optimizer(self: Any, model: Any = None) -> torch.optim.Optimizer:
    if self.optimizer is None:
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=self.args.learning_rate, momentum=0.5)
    return self.optimizer


def own_scheduler(self: Any, num_training_steps: int, optimizer: Any = None) -> Any:
    if self.lr_scheduler is None:
        given = self.optimizer if optimizer is None else optimizer
        self.lr_scheduler = torch.optim.lr_scheduler.StepLR(given, 3, gamma=0.5)
        self._created_lr_scheduler = True
    return self.lr_scheduler


def own_both(self: Any, num_training_steps: int) -> None:
    own_optimizer(self)
    self.lr_scheduler = transformers.get_cosine_schedule_with_warmup(self.optimizer, 2, num_training_steps)


@pytest.mark.parametrize(
    "methods",
    [
        {"create_optimizer": own_optimizer},
        {"create_scheduler": own_scheduler},
        {"create_optimizer": own_optimizer, "create_scheduler": own_scheduler},
    ],
    ids=lambda methods: " and ".join(methods),
)
def test_optimizer_and_schedule_overridden(methods: dict[str, Any], tmp_path: Path) -> None:
    runs = [train(subclass(side, **methods), tmp_path, model=Small(), logging_steps=1) for side in BOTH]
    assert_same_training(runs[0], runs[1])


def test_both_made_in_one_method_as_older_scripts_do(tmp_path: Path) -> None:
    """transformers 5 no longer calls it; a script that overrides it means it."""
    run = train(subclass(OURS, create_optimizer_and_scheduler=own_both), tmp_path, logging_steps=1)
    assert isinstance(run.trainer.optimizer, torch.optim.SGD)
    rates = [entry["learning_rate"] for entry in run.trainer.state.log_history if "learning_rate" in entry]
    assert rates[1] > rates[0] and rates[-1] < rates[2]


def test_optimizers_given(tmp_path: Path) -> None:
    runs = []
    for side in BOTH:
        model = Small()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        runs.append(train(side, tmp_path, model=model, logging_steps=1, given={"optimizers": (optimizer, scheduler)}))
    assert_same_training(runs[0], runs[1])


def test_an_optimizer_given_without_a_scheduler(tmp_path: Path) -> None:
    runs = []
    for side in BOTH:
        model = Small()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        runs.append(train(side, tmp_path, model=model, logging_steps=1, given={"optimizers": (optimizer, None)}))
    assert_same_training(runs[0], runs[1])


def test_a_class_of_optimizer_given(tmp_path: Path) -> None:
    given = {"optimizer_cls_and_kwargs": (torch.optim.RAdam, {"lr": 0.02})}
    train_both(tmp_path, given=given, logging_steps=1)


def test_dataloader_and_sampler_overridden(tmp_path: Path) -> None:
    def loader(self: Any) -> Any:
        return torch.utils.data.DataLoader(self.train_dataset, batch_size=5, collate_fn=self.data_collator)

    def backwards(self: Any, train_dataset: Any = None) -> Any:
        return list(range(len(self.train_dataset)))[::-1]

    for name, method in (("get_train_dataloader", loader), ("_get_train_sampler", backwards)):
        runs = [
            train(subclass(side, **{name: method}), tmp_path / name, model=Small(), logging_steps=1) for side in BOTH
        ]
        assert_same_training(runs[0], runs[1])
        assert runs[0].output.global_step == (12 if name == "get_train_dataloader" else 16)


def test_a_dataloader_that_wraps_that_of_the_trainer(tmp_path: Path) -> None:
    """No DataLoader any more, but something with a length that can be iterated."""

    class Wrapped:
        def __init__(self, inner: Any) -> None:
            self.inner, self.dataset = inner, inner.dataset

        def __len__(self) -> int:
            return len(self.inner)

        def __iter__(self) -> Iterator[Any]:
            yield from self.inner

    def loader(self: Any) -> Any:
        inner = torch.utils.data.DataLoader(self.train_dataset, batch_size=5, collate_fn=self.data_collator)
        return Wrapped(inner)

    run = train(subclass(OURS, get_train_dataloader=loader), tmp_path, logging_steps=1)
    plain_loader = torch.utils.data.DataLoader
    expected = train(
        subclass(
            OURS,
            get_train_dataloader=lambda self: plain_loader(
                self.train_dataset, batch_size=5, collate_fn=self.data_collator
            ),
        ),
        tmp_path,
        logging_steps=1,
    )
    assert_same_training(run, expected)


def test_evaluation_and_log_overridden(tmp_path: Path) -> None:
    def make(base: Any) -> dict[str, Any]:
        def evaluate(self: Any, *given: Any, **others: Any) -> Any:
            metrics = base.evaluate(self, *given, **others)
            metrics["eval_twice"] = 2 * metrics["eval_loss"]
            self.log({"eval_twice": metrics["eval_twice"]})
            return metrics

        def log(self: Any, logs: dict[str, float], *given: Any) -> None:
            logs["seen"] = 1.0
            base.log(self, logs, *given)

        def prediction_step(self: Any, *given: Any, **others: Any) -> Any:
            loss, logits, labels = base.prediction_step(self, *given, **others)
            return 3 * loss, logits, labels

        return {"evaluate": evaluate, "log": log, "prediction_step": prediction_step}

    options = {"eval_strategy": "epoch", "save_strategy": "best", "metric_for_best_model": "twice"}
    runs = [train(side, tmp_path, model=Small(), **options) for side in both_subclasses(make)]
    assert_same_training(runs[0], runs[1])
    assert runs[0].trainer.state.best_metric == runs[1].trainer.state.best_metric
    assert all(entry["seen"] == 1.0 for entry in runs[0].trainer.state.log_history)


def test_evaluation_loop_and_dataloaders_overridden(tmp_path: Path) -> None:
    def make(base: Any) -> dict[str, Any]:
        def evaluation_loop(self: Any, *given: Any, **others: Any) -> Any:
            output = base.evaluation_loop(self, *given, **others)
            output.metrics["eval_own"] = 4.0
            return output

        def get_eval_dataloader(self: Any, eval_dataset: Any = None) -> Any:
            rows = self.eval_dataset if eval_dataset is None else eval_dataset
            return torch.utils.data.DataLoader(rows, batch_size=5, collate_fn=self.data_collator)

        return {"evaluation_loop": evaluation_loop, "get_eval_dataloader": get_eval_dataloader}

    runs = [train(side, tmp_path, model=Small(), eval_strategy="epoch") for side in both_subclasses(make)]
    assert_same_training(runs[0], runs[1])


def test_an_overridden_method_that_is_not_called_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def get_batch_samples(self: Any, *given: Any) -> Any:
        raise AssertionError("nobody calls this")

    start(subclass(OURS, get_batch_samples=get_batch_samples), tmp_path)
    assert any("get_batch_samples" in line for line in lines_of(caplog))


def test_accumulation_of_a_model_that_ignores_the_number_of_targets_is_said(
    tiny_model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"gradient_accumulation_steps": 2, "max_steps": 1}
    train(OURS, tmp_path, model=Small(), **options)
    assert not lines_of(caplog)
    train(OURS, tmp_path, model=make_bert(tiny_model_dir), **options)
    assert any("the mean over all its targets" in line for line in lines_of(caplog))


def test_a_batch_sampler_of_the_user(tmp_path: Path) -> None:
    """Batches of several sizes."""

    class Batches:
        def __len__(self) -> int:
            return 4

        def __iter__(self) -> Iterator[list[int]]:
            yield from ([0, 1, 2], [3, 4, 5, 6], [7], [8, 9])

    def loader(self: Any) -> Any:
        return torch.utils.data.DataLoader(
            self.train_dataset,
            batch_sampler=Batches(),
            collate_fn=self.data_collator,  # type: ignore[arg-type]
        )

    runs = [
        train(subclass(side, get_train_dataloader=loader), tmp_path, model=Small(), logging_steps=1) for side in BOTH
    ]
    assert_same_training(runs[0], runs[1])
    assert runs[0].output.global_step == 8


def test_accumulation_counts_each_token_alike(tmp_path: Path) -> None:
    """Rows of 2 to 7 tokens: a mean of the means of micro-batches would be another number."""
    values = {
        "rows": tagged_rows(24),
        "given": {"data_collator": pad},
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
    }
    small, big = (
        train(
            OURS,
            tmp_path / str(size),
            model=Tagger(),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=8 // size,
            **values,
        )
        for size in (2, 8)
    )
    assert small.losses == pytest.approx(big.losses, rel=1e-5)
    assert_same_weights(small.trainer.model, big.trainer.model, tolerance=1e-5)


@pytest.mark.parametrize("keeps", [False, True])
def test_rows_whose_loss_is_not_finite_are_left_out_of_the_mean(
    keeps: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In evaluation, as in transformers; and said."""

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        return F.cross_entropy(outputs["logits"], labels) + (float("nan") if (labels == 2).any() else 0.0)

    rows = sorted(make_rows(20), key=lambda row: row["labels"])
    options = {"evaluated": rows, "given": {"compute_loss_func": loss}, "logging_nan_inf_filter": not keeps}
    results = [start(side, tmp_path, model=Small(), **options).trainer.evaluate() for side in BOTH]
    assert_equal(*results)
    assert np.isnan(results[0]["eval_loss"]) == keeps
    said = [line for line in lines_of(caplog, "headstart.drop_in.evaluation") if "not finite" in line]
    assert bool(said) != keeps


# model_init and searches


def counted(made: list[nn.Module]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        made.append(Small())
        return made[-1]

    return make


def test_each_training_begins_with_a_new_model(tmp_path: Path) -> None:
    results = []
    for side in BOTH:
        made: list[nn.Module] = []
        arguments = make_arguments(side, tmp_path / side.name, logging_steps=1)
        trainer = side.trainer(args=arguments, model_init=counted(made), train_dataset=make_rows(12))
        first = trainer.train().training_loss
        second = trainer.train().training_loss
        assert first == second
        assert trainer.model is made[-1]
        results.append([len(made), first])
    assert_equal(*results)


def test_a_search_gives_the_best_run(tmp_path: Path) -> None:
    pytest.importorskip("optuna").logging.set_verbosity(logging.ERROR)
    results = []
    for side in BOTH:
        arguments = make_arguments(side, tmp_path / side.name, eval_strategy="epoch", save_strategy="epoch")
        trainer = side.trainer(
            args=arguments,
            model_init=lambda trial: Small(),
            train_dataset=make_rows(30),
            eval_dataset=make_rows(10, seed=1),
        )
        best = trainer.hyperparameter_search(
            hp_space=lambda trial: {"learning_rate": trial.suggest_categorical("learning_rate", [1e-9, 1e-2])},
            n_trials=2,
            direction="minimize",
            backend="optuna",
            sampler=pytest.importorskip("optuna").samplers.GridSampler({"learning_rate": [1e-9, 1e-2]}, seed=0),
        )
        assert type(best).__name__ == "BestRun"
        results.append([best.run_id, best.objective, best.hyperparameters])
        assert {path.name for path in (tmp_path / side.name).iterdir()} >= {"run-0", "run-1"}
        assert (tmp_path / side.name / "run-0" / "checkpoint-8" / "model.safetensors").exists()
    assert_equal(*results)
    assert results[0][2] == {"learning_rate": 1e-2}


# The hub


class Repository:
    """Stands for the hub."""

    def __init__(self) -> None:
        self.uploads: list[dict[str, Any]] = []

    def create_repo(self, name: str, **options: Any) -> Any:
        self.repo_id = name
        return self

    def upload_folder(self, **options: Any) -> Any:
        folder = Path(options["folder_path"])
        options["names"] = sorted(path.name for path in folder.iterdir())
        self.uploads.append(options)
        return self

    def done(self) -> bool:
        return True


def test_the_model_is_pushed(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Repository()
    monkeypatch.setattr("transformers.trainer.hf_api", lambda: hub)
    monkeypatch.setattr("huggingface_hub.HfApi", lambda *given, **options: hub)
    run = train(
        OURS,
        tmp_path,
        model=make_bert(tiny_model_dir),
        push_to_hub=True,
        hub_model_id="me/mine",
        hub_strategy="every_save",
        save_strategy="epoch",
    )
    assert [upload["repo_id"] for upload in hub.uploads] == ["me/mine", "me/mine"]
    run.trainer.push_to_hub("the end")
    assert hub.uploads[-1]["commit_message"] == "the end"
    assert {"README.md", "config.json", "model.safetensors"} <= set(hub.uploads[-1]["names"])
    assert not [name for upload in hub.uploads for name in upload["names"] if name.endswith((".bin", ".pt", ".pth"))]
    run.trainer.save_model()
    assert hub.uploads[-1]["commit_message"] == "Model save"


def test_pushing_is_handed_to_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handed: list[Any] = []

    def push(self: Any, *given: Any, **options: Any) -> str:
        handed.append((self, given, options))
        return "address"

    monkeypatch.setattr(transformers.Trainer, "push_to_hub", push)
    trainer = start(OURS, tmp_path).trainer
    assert trainer.push_to_hub("message", blocking=False) == "address"
    assert handed == [(trainer, ("message",), {"blocking": False})]


# headstart="fast"


def test_fast_puts_rows_of_like_length_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ordinary = lengths_trained_on(tmp_path / "ordinary")
    fast = lengths_trained_on(tmp_path / "fast", headstart="fast")
    monkeypatch.setenv("HEADSTART", "fast")
    assert lengths_trained_on(tmp_path / "variable") == fast
    assert lengths_trained_on(tmp_path / "neither", headstart="") == ordinary
    assert spread_of(fast) < 1 < spread_of(ordinary)


class LooksOn(transformers.TrainerCallback):
    """Keeps what the model computes by while it is trained."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, bool, str]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        model = others["model"]
        swapped = any("forward" in module.__dict__ for module in model.modules())
        self.seen.append((type(others["optimizer"]).__name__, swapped, model.config._attn_implementation))


def test_fast_is_the_fast_path_while_it_trains(tmp_path: Path, tiny_model_dir: Path) -> None:
    ends = []
    for mode in ("fast", ""):
        looks_on, model = LooksOn(), make_bert(tiny_model_dir)
        options: dict[str, Any] = {"train_sampling_strategy": "sequential", "bf16": True, "learning_rate": 1e-3}
        run = train(OURS, tmp_path / mode, model=model, callbacks=lambda: [looks_on], headstart=mode, **options)  # noqa: B023
        kinds = {("FastAdamW", True, "headstart")} if mode else {("AdamW", False, "sdpa")}
        assert set(looks_on.seen) == kinds
        assert not any("forward" in module.__dict__ for module in model.modules())
        assert model.config._attn_implementation == "sdpa"
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        ends.append(run.losses)
        assert run.trainer.evaluate()["eval_loss"] > 0
        run.trainer.save_model(str(tmp_path / "saved"))
        assert "headstart" not in (tmp_path / "saved" / "config.json").read_text()
    assert ends[0] == pytest.approx(ends[1], abs=0.02)


def test_fast_is_fast_when_training_goes_on_with_the_same_optimizer(tmp_path: Path, tiny_model_dir: Path) -> None:
    copied: list[bool] = []

    class Copies(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            copied.append(others["optimizer"].working_copies is not None)

    model, given = make_bert(tiny_model_dir), [Copies()]
    run = train(OURS, tmp_path, model=model, callbacks=lambda: given, headstart="fast", bf16=True)
    first, steps = run.trainer.optimizer, len(copied)
    run.trainer.train()
    assert run.trainer.optimizer is first
    assert len(copied) == 2 * steps
    assert all(copied)


def test_fast_leaves_an_optimizer_that_was_handed_in(tmp_path: Path, tiny_model_dir: Path) -> None:
    for make, name in ((torch.optim.SGD, "SGD"), (torch.optim.AdamW, "AdamW")):
        model, looks_on = make_bert(tiny_model_dir), LooksOn()
        optimizer = make(model.parameters(), lr=1e-3)
        schedule = torch.optim.lr_scheduler.ConstantLR(optimizer) if name == "SGD" else None
        given = {"optimizers": (optimizer, schedule)}
        run = train(OURS, tmp_path / name, model=model, callbacks=lambda: [looks_on], given=given, headstart="fast")  # noqa: B023
        assert set(looks_on.seen) == {(name, True, "headstart")}
        assert run.trainer.optimizer is optimizer


def test_fast_takes_arguments_of_transformers_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADSTART", "fast")
    side = Side("mixed", OURS.trainer, THEIRS.arguments)
    train(side, tmp_path, model=Tagger(), rows=tagged_rows(), given={"data_collator": pad})


# Data


KINDS: dict[str, Callable[[list[dict[str, Any]]], Any]] = {
    "datasets": datasets.Dataset.from_list,
    "torch": Rows,
    "stream of torch": Stream,
    "stream of datasets": lambda rows: datasets.Dataset.from_list(rows).to_iterable_dataset(),
    "shuffled stream": lambda rows: datasets.Dataset.from_list(rows).to_iterable_dataset().shuffle(3, buffer_size=8),
    "formatted": lambda rows: datasets.Dataset.from_list(rows).with_format("torch"),
}


@pytest.mark.parametrize("count", [1, 4, 10])
@pytest.mark.parametrize("kind", KINDS)
def test_data_of_each_kind(kind: str, count: int, tmp_path: Path) -> None:
    """One row, whole batches, and a short last one; in training, evaluation and prediction."""
    rows = make_rows(count)
    options = {"max_steps": 6} if "stream" in kind else {}
    results = []
    for side in BOTH:
        data = KINDS[kind](rows)
        run = train(side, tmp_path, model=Small(), rows=data, evaluated=data, logging_steps=1, **options)
        results.append([run.trainer.state.log_history, run.trainer.evaluate(), run.trainer.predict(data)._asdict()])
    skip = ("eval_model_preparation_time", "test_model_preparation_time")
    for _, evaluated, predicted in results:
        for name in skip:
            evaluated.pop(name, None)
            predicted["metrics"].pop(name, None)
    assert_equal(*results)


def test_columns_that_the_model_does_not_take_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="headstart.drop_in")
    table = datasets.Dataset.from_list([{**row, "text": "abc"} for row in make_rows(9)])
    plain_rows = [{**row, "text": "abc"} for row in make_rows(9)]
    for rows in (table, plain_rows):
        ours, theirs = (train(side, tmp_path, rows=rows, evaluated=rows, eval_strategy="epoch") for side in BOTH)
        assert_same_training(ours, theirs)
    assert any("text" in record.getMessage() for record in caplog.records if "dataloaders" in record.name)


def test_columns_are_kept_where_that_is_asked(tmp_path: Path) -> None:
    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.tensor([row["ids"] for row in rows]), "labels": torch.tensor([r["y"] for r in rows])}

    table = datasets.Dataset.from_list([{"ids": row["input_ids"], "y": row["labels"]} for row in make_rows(9)])
    train_both(tmp_path, rows=table, given={"data_collator": collate}, remove_unused_columns=False)


def test_the_order_is_that_of_transformers(tmp_path: Path) -> None:
    """Row for row, over epochs, with a seed of its own for the data."""
    orders = []
    for side in BOTH:
        seen: list[int] = []

        def collate(rows: list[dict[str, Any]], seen: list[int] = seen) -> dict[str, torch.Tensor]:
            seen.extend(row["input_ids"][1] * 100 + row["input_ids"][0] for row in rows)
            return {name: torch.tensor([row[name] for row in rows]) for name in ("input_ids", "labels")}

        train(side, tmp_path, given={"data_collator": collate}, data_seed=11, num_train_epochs=3)
        orders.append(seen)
    assert orders[0] == orders[1]
    assert orders[0][:30] != orders[0][30:60]


# What cannot be done


def three_parts(error: HeadstartError) -> str:
    assert error.found and error.expected and error.fix, str(error)
    return str(error)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "no model"),
        ({"model": "bare"}, "no head"),
        ({"model": "small", "model_init": lambda: Small()}, "model and model_init"),
        ({"model": "small", "processing_class": object(), "tokenizer": object()}, "tokenizer and processing_class"),
        ({"model": "small", "eval_strategy": "epoch"}, "no eval_dataset"),
        ({"model": "small", "train_dataset": Stream(make_rows(3))}, "no length"),
        ({"model": "small", "data_collator": 3}, "data_collator"),
        ({"model_init": lambda: Small(), "optimizers": ("given", None)}, "model_init"),
        ({"model": "small", "optimizers": ("given", None), "optimizer_cls_and_kwargs": (1, {})}, "optimizers and"),
        ({"model": "small", "batch_eval_metrics": True, "compute_metrics": lambda p: {}}, "compute_result"),
        ({"model": "small", "save_strategy": "best"}, "metric_for_best_model"),
    ],
)
def test_a_trainer_that_cannot_be_made(
    values: dict[str, Any], message: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    if values.get("model") == "bare":
        values = {**values, "model": transformers.AutoModel.from_pretrained(tiny_model_dir)}
    elif values.get("model") == "small":
        values = {**values, "model": Small()}
    if values.get("optimizers"):
        values = {**values, "optimizers": (torch.optim.SGD(Small().parameters(), lr=1.0), None)}
    names = inspect.signature(headstart.Trainer.__init__).parameters
    fields = {name: value for name, value in values.items() if name not in names}
    given = {name: value for name, value in values.items() if name in names}
    with pytest.raises(HeadstartError, match=re.escape(message)) as caught:
        headstart.Trainer(args=make_arguments(OURS, tmp_path / "out", **fields), **given)
    three_parts(caught.value)
    assert not (tmp_path / "out").exists()


def trainer_of(tmp_path: Path, **given: Any) -> Any:
    fields = {name: given.pop(name) for name in list(given) if name in ("max_steps", "dataloader_drop_last")}
    values = {"model": Small(), "train_dataset": make_rows(5), **given}
    return headstart.Trainer(args=make_arguments(OURS, tmp_path / "out", **fields), **values)


class NoLoss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 2)

    def forward(self, input_ids: torch.Tensor, labels: Any = None) -> Any:
        return {"logits": self.head(input_ids.float())}


@pytest.mark.parametrize(
    ("given", "work", "message"),
    [
        ({"train_dataset": None}, lambda trainer: trainer.train(), "no train_dataset"),
        ({}, lambda trainer: trainer.evaluate(), "no eval_dataset"),
        ({"train_dataset": []}, lambda trainer: trainer.train(), "train"),
        ({"train_dataset": datasets.Dataset.from_dict({"text": ["a"]})}, lambda trainer: trainer.train(), "takes none"),
        ({"train_dataset": [{"text": 1}]}, lambda trainer: trainer.train(), "empty"),
        ({"train_dataset": Stream([]), "max_steps": 3}, lambda trainer: trainer.train(), "no batch"),
        ({"dataloader_drop_last": True, "train_dataset": make_rows(3)}, lambda trainer: trainer.train(), "batch"),
        ({"model": NoLoss()}, lambda trainer: trainer.train(), "no loss"),
        ({}, lambda trainer: trainer.train(resume_from_checkpoint=True), "no checkpoint"),
        ({}, lambda trainer: trainer.train(resume_from_checkpoint="nowhere"), "nowhere"),
    ],
)
def test_work_that_cannot_be_done(
    given: dict[str, Any], work: Callable[[Any], Any], message: str, tmp_path: Path
) -> None:
    trainer = trainer_of(tmp_path, **given)
    with pytest.raises(HeadstartError, match=message) as caught:
        work(trainer)
    three_parts(caught.value)


def test_an_evaluation_set_that_is_not_there_by_name(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, eval_dataset={"near": make_rows(3)})
    with pytest.raises(HeadstartError, match="near") as caught:
        trainer.evaluate("nera")
    three_parts(caught.value)


def test_an_empty_evaluation_set_is_evaluated_as_in_transformers(tmp_path: Path) -> None:
    results = []
    for side in BOTH:
        trainer = start(side, tmp_path, evaluated=make_rows(3)).trainer
        results.append(trainer.evaluate(Rows([])))
    assert_equal(*results)


def test_a_metric_that_is_not_there(tmp_path: Path) -> None:
    trainer = start(OURS, tmp_path, eval_strategy="epoch", metric_for_best_model="accuracy").trainer
    with pytest.raises(HeadstartError, match="accuracy") as caught:
        trainer.train()
    three_parts(caught.value)


def test_a_loss_that_is_not_finite_stops(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        factor = float("nan") if (labels == 2).all() else 1.0
        return factor * F.cross_entropy(outputs["logits"], labels)

    rows = [row for row in make_rows(40) if row["labels"] == 0][:8] + [
        row for row in make_rows(40) if row["labels"] == 2
    ]
    trainer = start(
        OURS,
        tmp_path,
        rows=rows,
        given={"compute_loss_func": loss},
        train_sampling_strategy="sequential",
        logging_steps=1,
    ).trainer
    with pytest.raises(headstart.TrainingError, match="Step 2"):
        trainer.train()
    assert trainer.state.global_step == 2
    assert all(bool(parameter.isfinite().all()) for parameter in trainer.model.parameters())


def test_the_older_name_of_the_tokenizer(tiny_model_dir: Path, tmp_path: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_model_dir)
    with pytest.warns(HeadstartWarning, match="processing_class"):
        trainer = trainer_of(tmp_path, tokenizer=tokenizer)
    assert trainer.processing_class is tokenizer
    assert isinstance(trainer.data_collator, transformers.DataCollatorWithPadding)
