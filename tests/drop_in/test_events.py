"""Callbacks see with headstart's Trainer what they see with transformers': the same events, in the same order."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import datasets
import pytest
import transformers
from transformers import EarlyStoppingCallback

import small_trainer
from recording import assert_same
from small_trainer import BOTH, OURS, THEIRS, Asks, Rows, Run, Side, Small, Stream, make_bert, make_rows


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEADSTART", "TENSORBOARD_LOGGING_DIR"):
        monkeypatch.delenv(name, raising=False)


def start(side: Side, folder: Path, **options: Any) -> Run:
    return small_trainer.start(side, folder, recorded=True, **options)


def train(side: Side, folder: Path, **options: Any) -> Run:
    return small_trainer.train(side, folder, recorded=True, **options)


def accuracy(prediction: transformers.EvalPrediction) -> dict[str, Any]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def compare(tmp_path: Path, *, tolerance: float = 1e-6, **options: Any) -> list[dict[str, Any]]:
    ours, theirs = (train(side, tmp_path, **options) for side in BOTH)
    assert_same(ours.events, theirs.events, tolerance=tolerance)
    assert ours.output.global_step == theirs.output.global_step
    assert ours.output.training_loss == pytest.approx(theirs.output.training_loss, rel=tolerance)
    assert set(ours.output.metrics) == set(theirs.output.metrics)
    return ours.events


def names_of(events: list[dict[str, Any]]) -> set[str]:
    return {record["event"].split()[0] for record in events}


# 30 rows in batches of 4: 8 steps an epoch, the last of 2 rows.
STRATEGIES: dict[str, dict[str, Any]] = {
    "logs by steps": {"logging_steps": 5},
    "logs by epoch": {"logging_strategy": "epoch"},
    "logs never": {"logging_strategy": "no"},
    "logs every step": {"logging_steps": 1},
    "a share of the steps": {"logging_steps": 0.2, "eval_strategy": "steps", "eval_steps": 0.3, "save_steps": 0.6}
    | {"save_strategy": "steps"},
    "all by steps": {"eval_strategy": "steps", "eval_steps": 3, "save_strategy": "steps", "save_steps": 3},
    "all by epoch": {"logging_strategy": "epoch", "eval_strategy": "epoch", "save_strategy": "epoch"},
    "logs by steps, the rest by epoch": {"logging_steps": 3, "eval_strategy": "epoch", "save_strategy": "epoch"},
    "saves by steps, evaluates by epoch": {"eval_strategy": "epoch", "save_strategy": "steps", "save_steps": 5},
    "evaluates by steps, saves by epoch": {"eval_strategy": "steps", "eval_steps": 5, "save_strategy": "epoch"},
    "evaluates without eval_steps": {"eval_strategy": "steps", "logging_steps": 5},
    "the first step": {"logging_first_step": True, "logging_steps": 7},
    "evaluates at the start": {"eval_on_start": True, "eval_strategy": "epoch"},
    "evaluates later, by steps": {"eval_strategy": "steps", "eval_steps": 2, "eval_delay": 7},
    "evaluates later, by epoch": {"eval_strategy": "epoch", "eval_delay": 2, "num_train_epochs": 3},
    "a part of an epoch": {"num_train_epochs": 0.6},
    "epochs and a part": {"num_train_epochs": 1.4, "eval_strategy": "epoch", "save_strategy": "epoch"},
    "steps end inside an epoch": {"max_steps": 11, "eval_strategy": "epoch", "save_strategy": "epoch"},
    "steps end with an epoch": {"max_steps": 16, "eval_strategy": "steps", "eval_steps": 8, "save_strategy": "epoch"},
    "fewer steps than an epoch": {"max_steps": 3, "eval_strategy": "steps", "eval_steps": 2},
    "no short batch": {"dataloader_drop_last": True, "eval_strategy": "epoch"},
    "no clipping": {"max_grad_norm": 0.0},
    "saves the best": {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "best"}
    | {"metric_for_best_model": "accuracy"},
    "saves the best of the losses": {"eval_strategy": "epoch", "save_strategy": "best", "learning_rate": 0.3}
    | {"metric_for_best_model": "loss", "greater_is_better": False, "num_train_epochs": 3},
    "loads the best": {"eval_strategy": "steps", "eval_steps": 4, "save_strategy": "steps", "save_steps": 4}
    | {"load_best_model_at_end": True, "metric_for_best_model": "accuracy", "learning_rate": 0.3},
    "keeps one": {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    | {"save_total_limit": 1, "num_train_epochs": 4, "learning_rate": 0.3},
    "a rate that waits for a metric": {"eval_strategy": "epoch", "lr_scheduler_type": "reduce_lr_on_plateau"}
    | {"metric_for_best_model": "loss", "num_train_epochs": 4, "learning_rate": 0.5},
    "warm-up": {"warmup_steps": 5, "lr_scheduler_type": "cosine", "logging_steps": 1},
}


RARELY = (
    "logs never",
    "evaluates without eval_steps",
    "steps end with an epoch",
    "fewer steps than an epoch",
    "no short batch",
    "no clipping",
    "saves the best of the losses",
    "warm-up",
)


@pytest.mark.parametrize(
    "recipe", [pytest.param(name, marks=pytest.mark.slow if name in RARELY else []) for name in STRATEGIES]
)
def test_events_by_strategy(recipe: str, tmp_path: Path) -> None:
    compare(tmp_path, given={"compute_metrics": accuracy}, **STRATEGIES[recipe])


# 28 rows: 7 batches, in groups of 3, 3 and 1. Of equal batches, a mean of means is the mean.
ACCUMULATION: dict[str, dict[str, Any]] = {
    "by steps": {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2},
    "by epoch": {"logging_strategy": "epoch", "eval_strategy": "epoch", "save_strategy": "epoch"},
    "ends inside": {"max_steps": 5, "logging_steps": 1},
    "part of an epoch": {"num_train_epochs": 1.5, "logging_steps": 1},
    "more than an epoch has": {"gradient_accumulation_steps": 10, "logging_steps": 1},
    "without clipping": {"max_grad_norm": 0.0, "logging_steps": 1},
}


@pytest.mark.parametrize("recipe", ACCUMULATION)
def test_events_with_accumulation(recipe: str, tmp_path: Path) -> None:
    options = {"gradient_accumulation_steps": 3, **ACCUMULATION[recipe]}
    events = compare(tmp_path, rows=make_rows(28), tolerance=1e-5, **options)
    assert "on_substep_end" in names_of(events)


# What callbacks ask for

FLAGS = ("should_epoch_stop", "should_training_stop", "should_save", "should_evaluate", "should_log")
MOMENTS = (
    ("on_train_begin", None),
    ("on_epoch_begin", 0),
    ("on_epoch_begin", 8),
    ("on_step_begin", 4),
    ("on_pre_optimizer_step", 4),
    ("on_optimizer_step", 4),
    ("on_step_end", 5),
    ("on_step_end", 8),
    ("on_step_end", 16),
    ("on_log", 3),
    ("on_prediction_step", 6),
    ("on_evaluate", 6),
    ("on_save", 6),
    ("on_epoch_end", 8),
    ("on_epoch_end", 16),
)


def often_and_rarely(first: Sequence[Any], second: Sequence[Any]) -> list[Any]:
    """Give all pairs; each of both sides is in one that is always tried, the others are slow."""
    length = min(len(first), len(second))
    return [
        pytest.param(x, y, marks=[] if i % length == j % length else pytest.mark.slow)
        for i, x in enumerate(first)
        for j, y in enumerate(second)
    ]


@pytest.mark.parametrize(("flag", "moment"), often_and_rarely(FLAGS, MOMENTS))
def test_what_a_callback_asks_for_is_done_as_in_transformers(
    flag: str, moment: tuple[str, int | None], tmp_path: Path
) -> None:
    event, step = moment
    options = {"eval_strategy": "steps", "eval_steps": 6, "save_strategy": "steps", "save_steps": 6}
    compare(tmp_path, callbacks=lambda: [Asks(event, step, **{flag: True})], **options)


@pytest.mark.parametrize(
    ("flag", "event"),
    often_and_rarely(FLAGS, ["on_step_begin", "on_step_end", "on_evaluate", "on_log", "on_save", "on_epoch_end"]),
)
def test_a_callback_may_return_a_new_control(flag: str, event: str, tmp_path: Path) -> None:
    step = 8 if event == "on_epoch_end" else 6
    options = {"eval_strategy": "steps", "eval_steps": 6, "save_strategy": "steps", "save_steps": 6}
    compare(tmp_path, callbacks=lambda: [Asks(event, step, anew=True, **{flag: True})], **options)


@pytest.mark.parametrize("flag", FLAGS)
def test_a_callback_may_take_back_what_is_due(flag: str, tmp_path: Path) -> None:
    options = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    compare(tmp_path, callbacks=lambda: [Asks("on_step_end", None, **{flag: False})], **options)


@pytest.mark.parametrize("flag", ["should_save", "should_evaluate", "should_log"])
def test_a_callback_may_ask_between_micro_batches(flag: str, tmp_path: Path) -> None:
    compare(
        tmp_path,
        rows=make_rows(28),
        tolerance=1e-5,
        gradient_accumulation_steps=3,
        callbacks=lambda: [Asks("on_substep_end", 1, **{flag: True})],
    )


@pytest.mark.parametrize("flag", ["should_epoch_stop", "should_training_stop"])
def test_an_update_whose_epoch_ends_between_micro_batches_is_made_whole(flag: str, tmp_path: Path) -> None:
    """transformers leaves it out and throws its gradients away; an update here is made whole or not begun."""
    options = {"rows": make_rows(28), "gradient_accumulation_steps": 3, "num_train_epochs": 1, "logging_steps": 1}
    ours, theirs = (
        train(side, tmp_path, callbacks=lambda: [Asks("on_substep_end", 1, **{flag: True})], **options) for side in BOTH
    )
    assert (ours.output.global_step, theirs.output.global_step) == (2, 1)


def test_early_stopping(tmp_path: Path) -> None:
    events = compare(
        tmp_path,
        callbacks=lambda: [EarlyStoppingCallback(2)],
        num_train_epochs=8,
        learning_rate=0.3,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        save_total_limit=2,
        metric_for_best_model="loss",
    )
    last = events[-1]["state"]
    assert last["epoch"] < 8
    assert last["best_model_checkpoint"].startswith("OUTPUT/checkpoint-")


# Data of other kinds


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(Rows, id="torch"),
        pytest.param(datasets.Dataset.from_list, id="datasets"),
        pytest.param(lambda rows: rows[:1], id="one row"),
        pytest.param(lambda rows: rows[:4], id="one batch"),
    ],
)
def test_events_by_kind_of_data(make: Callable[[Any], Any], tmp_path: Path) -> None:
    compare(tmp_path, rows=make(make_rows(30)), eval_strategy="epoch", save_strategy="epoch")


def streamed_by_datasets(rows: list[dict[str, Any]]) -> datasets.IterableDataset:
    return datasets.Dataset.from_list(rows).to_iterable_dataset()


@pytest.mark.parametrize("make", [Stream, streamed_by_datasets])
@pytest.mark.parametrize(
    "options",
    [
        {"max_steps": 5},
        {"max_steps": 16},
        {"max_steps": 19, "eval_strategy": "epoch", "save_strategy": "epoch"},
        {"max_steps": 19, "eval_strategy": "steps", "eval_steps": 6, "save_strategy": "steps", "save_steps": 6},
    ],
    ids=["a part", "ends with an epoch", "by epoch", "by steps"],
)
def test_events_with_a_stream(make: Callable[[Any], Any], options: dict[str, Any], tmp_path: Path) -> None:
    """30 rows are 8 steps: longer trainings begin the stream anew."""
    compare(tmp_path, rows=make(make_rows(30)), **options)


def test_events_with_a_stream_and_accumulation(tmp_path: Path) -> None:
    compare(
        tmp_path,
        rows=Stream(make_rows(32)),
        gradient_accumulation_steps=2,
        max_steps=7,
        logging_steps=1,
        tolerance=1e-5,
    )


def test_events_with_an_evaluation_set_that_is_a_stream(tmp_path: Path) -> None:
    compare(tmp_path, evaluated=Stream(make_rows(10, seed=1)), eval_strategy="epoch")


def test_events_with_several_evaluation_sets(tmp_path: Path) -> None:
    several = {"near": make_rows(10, seed=1), "far": make_rows(7, seed=2)}
    compare(tmp_path, evaluated=several, eval_strategy="epoch", given={"compute_metrics": accuracy})


@pytest.mark.parametrize("kind", ["all", "non_padding"])
def test_events_with_tokens_counted(kind: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    events = compare(
        tmp_path,
        include_num_input_tokens_seen=kind,
        eval_strategy="epoch",
        rows=[{**row, "attention_mask": [1, 1, 1, 1, 0, 0]} for row in make_rows(30)],
    )
    assert events[-1]["state"]["num_input_tokens_seen"] == 2 * 30 * 6


def test_events_with_a_model_of_the_library(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Floating-point operations are counted, the tokenizer is handed on, and columns that do not fit are left out."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_model_dir)
    texts = [
        {"text": f"the film was {word} {number}", "label": number % 3} for number, word in enumerate("abcdefgh" * 3)
    ]
    table = datasets.Dataset.from_list([{**tokenizer(row["text"]), **row} for row in texts])
    runs = [
        train(
            side,
            tmp_path,
            model=make_bert(tiny_model_dir),
            rows=table,
            evaluated=table.select(range(5)),
            given={"processing_class": tokenizer, "compute_metrics": accuracy},
            eval_strategy="epoch",
            save_strategy="epoch",
            load_best_model_at_end=True,
            include_num_input_tokens_seen="non_padding",
        )
        for side in BOTH
    ]
    assert_same(runs[0].events, runs[1].events)
    last = runs[0].events[-1]
    assert last["state"]["total_flos"] > 0
    assert last["others"]["processing_class"] == type(tokenizer).__name__


# Without training, and more than once


def test_events_of_evaluate_and_predict_alone(tmp_path: Path) -> None:
    runs = [start(side, tmp_path, given={"compute_metrics": accuracy}) for side in BOTH]
    for run in runs:
        run.trainer.evaluate()
        run.trainer.evaluate(make_rows(6, seed=3), metric_key_prefix="other")
        run.trainer.predict(make_rows(5, seed=4))
        run.trainer.predict([{"input_ids": row["input_ids"]} for row in make_rows(5, seed=4)])
    assert_same(runs[0].events, runs[1].events)
    assert {"on_prediction_step", "on_evaluate", "on_predict", "on_log"} <= names_of(runs[0].events)


def test_events_of_a_second_training_and_what_follows(tmp_path: Path) -> None:
    runs = [train(side, tmp_path, eval_strategy="epoch") for side in BOTH]
    for run in runs:
        run.trainer.evaluate()
        run.trainer.predict(make_rows(5, seed=4))
        run.trainer.train()
        run.trainer.evaluate()
    assert_same(runs[0].events, runs[1].events)


@pytest.mark.parametrize("step", [3, 6, 9, 12, 15])
def test_events_after_resuming(step: int, tmp_path: Path) -> None:
    """Each goes on from its own checkpoint: inside an epoch, and in the next one; logged losses begin there."""
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3, "eval_strategy": "epoch"}
    resumed = []
    for side in BOTH:
        whole = train(side, tmp_path, **options)
        resumed.append(train(side, tmp_path, resume=str(whole.folder / f"checkpoint-{step}"), **options))
    assert_same(resumed[0].events, resumed[1].events)
    assert resumed[0].output.training_loss == pytest.approx(resumed[1].output.training_loss, rel=1e-6)


def test_events_after_resuming_with_accumulation(tmp_path: Path) -> None:
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "gradient_accumulation_steps": 3}
    options["logging_steps"] = 2  # so that no loss is lost in transformers between the last line and the checkpoint
    resumed = []
    for side in BOTH:
        whole = train(side, tmp_path, rows=make_rows(28), **options)
        checkpoint = str(whole.folder / "checkpoint-4")
        resumed.append(train(side, tmp_path, rows=make_rows(28), resume=checkpoint, **options))
    assert_same(resumed[0].events, resumed[1].events, tolerance=1e-5)


# Callbacks of the library


class Bar:
    """Stands for tqdm's: what is shown of it depends on the clock, what it is told does not."""

    told: ClassVar[list[Any]] = []

    def __init__(self, **options: Any) -> None:
        self.told.append(("made", options))

    def update(self, number: int = 1) -> None:
        self.told.append(("update", number))

    def write(self, line: str) -> None:
        self.told.append(("write", re.sub(r"'\w+(_runtime|_per_second)': '[^']+'", "a time", line)))

    def close(self) -> None:
        self.told.append(("close",))


def test_the_progress_bars_are_those_of_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.trainer_callback.tqdm", Bar)
    told = []
    for side in BOTH:
        Bar.told = []
        run = train(side, tmp_path, disable_tqdm=False, eval_strategy="epoch")
        run.trainer.predict(make_rows(6))
        told.append(Bar.told)
    assert told[0] == told[1]
    assert ("made", {"total": 16, "dynamic_ncols": True}) in told[0]
    assert sum(each[1] for each in told[0] if each[0] == "update") == 16 + 3 + 3 + 2


def test_tensorboard_gets_the_same_tags(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def scalars(side: Any) -> dict[str, list[tuple[int, float]]]:
        folder = tmp_path / f"curves-{side.name}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TENSORBOARD_LOGGING_DIR", str(folder))
            train(side, tmp_path, report_to="tensorboard", eval_strategy="epoch")
        events = EventAccumulator(str(folder)).Reload()
        timed = ("runtime", "per_second")
        return {
            tag: [] if tag.endswith(timed) else [(event.step, event.value) for event in events.Scalars(tag)]
            for tag in events.Tags()["scalars"]
        }

    ours, theirs = scalars(OURS), scalars(THEIRS)
    assert list(ours) == list(theirs)
    assert {"train/loss", "train/learning_rate", "eval/loss"} <= set(ours)
    for tag, values in ours.items():
        assert [step for step, _ in values] == [step for step, _ in theirs[tag]]
        assert [value for _, value in values] == pytest.approx([value for _, value in theirs[tag]], rel=1e-6)


def test_callbacks_are_added_and_removed_as_in_transformers(tmp_path: Path) -> None:
    class Mine(transformers.TrainerCallback):
        pass

    def work(side: Any) -> list[Any]:
        trainer = start(side, tmp_path).trainer
        trainer.add_callback(Mine)
        own = Mine()
        trainer.add_callback(own)
        first = trainer.pop_callback(Mine)
        trainer.remove_callback(own)
        kinds = [type(each).__name__ for each in trainer.callback_handler.callbacks]
        return [type(first).__name__, first is own, kinds, trainer.pop_callback(Mine)]

    assert work(OURS) == work(THEIRS)


def test_an_event_sees_the_model_in_training_mode_and_its_gradients(tmp_path: Path) -> None:
    """What callbacks that look into the model count on."""

    def work(side: Any) -> list[Any]:
        seen: list[Any] = []

        class Looks(transformers.TrainerCallback):
            def on_pre_optimizer_step(
                self, args: Any, state: Any, control: Any, model: Any = None, **rest: Any
            ) -> None:
                norm = sum(float(each.grad.norm()) for each in model.parameters())
                seen.append(("before", model.training, norm))

            def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **rest: Any) -> None:
                seen.append(("after", all(each.grad is None for each in model.parameters())))

        train(side, tmp_path, callbacks=lambda: [Looks()], model=Small(), max_steps=3)
        return seen

    ours, theirs = work(OURS), work(THEIRS)
    assert [each[:2] for each in ours] == [each[:2] for each in theirs]
    norms = [[each[2] for each in seen if each[0] == "before"] for seen in (ours, theirs)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)
