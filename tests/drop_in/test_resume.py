"""A training of the drop-in that was stopped, killed or is shared by processes comes to the same end, bit for bit."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import transformers
from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

import headstart
from forked import Forked
from headstart.errors import CheckpointError
from headstart.training.fast_path import FastPath
from joined import join, start_joined
from recording import difference, without_times
from small_trainer import (
    OURS,
    THEIRS,
    Asks,
    Rows,
    Run,
    Side,
    Small,
    Stream,
    make_bert,
    make_rows,
    start,
    train,
)

PICKLES = (".bin", ".pt", ".pth", ".pkl")
# Sums in another order.
PROCESSES_TOLERANCE = 2e-7


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEADSTART", raising=False)


@pytest.fixture(autouse=True)
def no_pickles(tmp_path: Path) -> Any:
    """Look for pickles in everything that headstart's Trainer has written in a test."""
    yield
    found = [path for path in tmp_path.rglob("*") if path.suffix in PICKLES and THEIRS.name not in path.parts]
    assert not found


def history(trainer: Any, folder: Path) -> list[dict[str, Any]]:
    """Give the history; names are sorted, because a file of states has them sorted."""
    found = without_times(trainer.state.log_history, folder)
    return [dict(sorted(line.items())) for line in found]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def bits(run: Run) -> dict[str, Any]:
    """Give what must not depend on where a training was stopped: the model's file, and the history."""
    run.trainer.save_model(str(run.folder / "final"))
    *lines, last = history(run.trainer, run.folder)
    # The mean loss over a call of `train` is that of this call, and so are its floating-point operations a second.
    last.pop("train_loss")
    state = json.loads(json.dumps(without_times(vars(run.trainer.state), run.folder), sort_keys=True))
    kept = ("epoch", "global_step", "best_metric", "best_global_step", "best_model_checkpoint", "total_flos")
    return {
        "model": digest(run.folder / "final" / "model.safetensors"),
        "history": [*lines, last],
        "state": {name: state[name] for name in (*kept, "num_input_tokens_seen", "stateful_callbacks")},
    }


def checkpoints_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))


def resume_from_each(
    tmp_path: Path,
    *,
    make_model: Callable[[], Any],
    make_rows_anew: Callable[[], Any] | None = None,
    limit: int | None = None,
    side: Side = OURS,
    **options: Any,
) -> Run:
    """Train without a stop, and go on from each of its checkpoints to the same bits; give the first training."""

    def go(resume: Any = None) -> Run:
        rows = {"rows": make_rows_anew()} if make_rows_anew is not None else {}
        return train(side, tmp_path, model=make_model(), resume=resume, **rows, **options)

    whole = go()
    expected = bits(whole)
    files = {path.name: digest(path / "optimizer.safetensors") for path in checkpoints_of(whole.folder)}
    saved = checkpoints_of(whole.folder)
    assert len(saved) >= 2
    shutil.copytree(whole.folder, tmp_path / "saved")
    for checkpoint in saved[:limit]:
        shutil.rmtree(whole.folder)
        shutil.copytree(tmp_path / "saved", whole.folder)
        for later in checkpoints_of(whole.folder)[saved.index(checkpoint) + 1 :]:
            shutil.rmtree(later)
        again = go(resume=str(checkpoint))
        found = bits(again)
        assert difference(found, expected, 0.0) is None, f"from {checkpoint.name}"
        written = {path.name: digest(path / "optimizer.safetensors") for path in checkpoints_of(whole.folder)}
        assert written == files, f"from {checkpoint.name}"
    return whole


BY_STEPS = {"save_strategy": "steps", "save_steps": 3, "logging_steps": 4, "warmup_steps": 4, "weight_decay": 0.1}

RECIPES: dict[str, dict[str, Any]] = {
    "by steps, logs between": {},
    "evaluations between": {"eval_strategy": "steps", "eval_steps": 2},
    "by epoch": {"save_strategy": "epoch", "eval_strategy": "epoch", "logging_strategy": "epoch"},
    "saved before the end of an epoch is done": {"save_steps": 8, "eval_strategy": "epoch"}
    | {"logging_strategy": "epoch"},
    "accumulation": {"gradient_accumulation_steps": 3, "save_steps": 1, "logging_steps": 2},
    "steps that end inside an epoch": {"max_steps": 13},
    "a part of an epoch": {"num_train_epochs": 1.4},
    "cosine with restarts": {"lr_scheduler_type": "cosine_with_restarts", "lr_scheduler_kwargs": {"num_cycles": 3}},
    "momentum": {"optim": "sgd", "optim_args": "momentum=0.9"},
    "adafactor": {"optim": "adafactor"},
    "a rate that waits for a metric": {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps"}
    | {"eval_steps": 2, "metric_for_best_model": "loss", "learning_rate": 0.5},
    "workers": {"dataloader_num_workers": 2, "save_steps": 7},
    "grouped by length": {"train_sampling_strategy": "group_by_length"},
    "sequential": {"train_sampling_strategy": "sequential"},
    "fast": {"headstart": "fast"},
    "the best is loaded": {"eval_strategy": "steps", "eval_steps": 3, "load_best_model_at_end": True},
    "tokens counted": {"include_num_input_tokens_seen": "all"},
}


OFTEN = (
    "by steps, logs between",
    "saved before the end of an epoch is done",
    "accumulation",
    "a rate that waits for a metric",
    "workers",
    "the best is loaded",
)


@pytest.mark.parametrize(
    "recipe", [pytest.param(name, marks=[] if name in OFTEN else pytest.mark.slow) for name in RECIPES]
)
def test_resumed_from_each_checkpoint(recipe: str, tmp_path: Path) -> None:
    """With dropout on."""
    resume_from_each(tmp_path, make_model=lambda: Small(0.3), **{**BY_STEPS, **RECIPES[recipe]})


def test_a_model_of_the_library_resumed_with_masks_drawn_by_the_collator(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Dropout, and words hidden at random: both belong to the batch."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_model_dir)

    def make() -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return transformers.AutoModelForMaskedLM.from_pretrained(tiny_model_dir)

    lines = [f"the film {index} was very good and so is it" for index in range(22)]
    rows = [{"input_ids": tokenizer(line)["input_ids"]} for line in lines]
    collator = transformers.DataCollatorForLanguageModeling(tokenizer)
    given = {"data_collator": collator, "processing_class": tokenizer}
    values = {**BY_STEPS, "save_steps": 4, "evaluated": rows[:5], "rows": rows}
    for workers in (0, 1):
        resume_from_each(
            tmp_path / str(workers), make_model=make, given=given, dataloader_num_workers=workers, limit=2, **values
        )


@pytest.mark.parametrize("was_free", [True, False])
def test_the_order_of_the_fast_mode_is_kept_where_the_fast_path_is_another(
    was_free: bool, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{**row, "input_ids": row["input_ids"][: 2 + number % 4]} for number, row in enumerate(make_rows(30))]

    def rows_trained_on(*, is_free: bool, resume: Any = None) -> list[list[list[int]]]:
        batches: list[list[list[int]]] = []

        def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
            batches.append([row["input_ids"] for row in batch])
            return transformers.default_data_collator([{**row, "input_ids": row["input_ids"][:2]} for row in batch])

        monkeypatch.setattr(FastPath, "leaves_padding_out", property(lambda self: is_free))
        options: dict[str, Any] = {"headstart": "fast", "rows": rows, "given": {"data_collator": collate}, **BY_STEPS}
        train(OURS, tmp_path, model=make_bert(tiny_model_dir), resume=resume, **options)
        return batches

    whole = rows_trained_on(is_free=was_free)
    first = checkpoints_of(tmp_path / OURS.name)[0]
    assert rows_trained_on(is_free=not was_free, resume=str(first)) == whole[3:]
    spread = max(max(map(len, batch)) - min(map(len, batch)) for batch in whole[:3])
    assert (spread > 1) == was_free


def test_rows_that_are_drawn_at_random_when_they_are_read(tmp_path: Path) -> None:
    """Data augmentation: a dataset that draws from the global streams, here or in workers."""

    class Random(Rows):
        def __getitem__(self, index: int) -> dict[str, Any]:
            row = super().__getitem__(index)
            return {**row, "input_ids": [int(each) for each in torch.randint(5, 40, (6,))]}

    here, there = (
        resume_from_each(
            tmp_path / str(workers),
            make_model=Small,
            rows=Random(make_rows(30)),
            dataloader_num_workers=workers,
            limit=2,
            **BY_STEPS,
        )
        for workers in (0, 2)
    )
    assert here.losses == there.losses


@pytest.mark.parametrize("depends_on_before", [False, True])
def test_a_sampler_of_the_user_that_draws(depends_on_before: bool, tmp_path: Path) -> None:
    """Rows drawn with weights, from the global stream; and one whose order depends on the epochs before."""

    class Walk(torch.utils.data.Sampler):
        def __init__(self) -> None:
            self.shift = 0

        def __len__(self) -> int:
            return 30

        def __iter__(self) -> Any:
            self.shift += 7
            return iter([(index * 11 + self.shift) % 30 for index in range(30)])

    def sampler(self: Any, train_dataset: Any = None) -> Any:
        if depends_on_before:
            return Walk()
        return torch.utils.data.WeightedRandomSampler([1.0 + index % 3 for index in range(30)], 30)

    mine = Side("ours", type("Mine", (OURS.trainer,), {"_get_train_sampler": sampler}), OURS.arguments)
    values = {**BY_STEPS, "num_train_epochs": 3, "save_steps": 5}
    resume_from_each(tmp_path, make_model=lambda: Small(0.3), side=mine, **values)


@pytest.mark.parametrize("kind", ["torch", "datasets", "shuffled"])
def test_a_stream_is_read_again_to_find_the_place(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def make() -> Any:
        if kind == "torch":
            return Stream(make_rows(30))
        stream = datasets.Dataset.from_list(make_rows(30)).to_iterable_dataset()
        return stream.shuffle(5, buffer_size=10) if kind == "shuffled" else stream

    resume_from_each(tmp_path, make_model=lambda: Small(0.3), make_rows_anew=make, max_steps=13, **BY_STEPS)
    said = [record.getMessage() for record in caplog.records if "read again" in record.getMessage()]
    assert "the first 3 updates of epoch 0 are read again to find its place" in said[0]
    # 30 rows are 8 steps: step 9 is the first of the second epoch.
    assert "the first 1 updates of epoch 1" in said[2]


def test_a_stream_is_not_read_again_where_that_is_not_wanted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = {**BY_STEPS, "max_steps": 7}
    whole = train(OURS, tmp_path, rows=Stream(make_rows(30)), **values)
    read: list[int] = []

    class Counted(Stream):
        def __iter__(self) -> Any:
            for row in super().__iter__():
                read.append(1)
                yield row

    rows = Counted(make_rows(30))
    checkpoint = str(whole.folder / "checkpoint-3")
    again = train(OURS, tmp_path, rows=rows, resume=checkpoint, ignore_data_skip=True, **values)
    assert again.output.global_step == 7
    assert len(read) == 16  # of 4 steps
    assert not [record for record in caplog.records if "read again" in record.getMessage()]


def test_a_resumed_training_reads_no_row_before_its_place(tmp_path: Path) -> None:
    read: list[int] = []

    class Counted(Rows):
        def __getitem__(self, index: int) -> dict[str, Any]:
            read.append(index)
            return super().__getitem__(index)

    values = {"save_strategy": "steps", "save_steps": 5}
    whole = train(OURS, tmp_path, rows=Counted(make_rows(30)), **values)
    order = list(read)
    read.clear()
    train(OURS, tmp_path, rows=Counted(make_rows(30)), resume=str(whole.folder / "checkpoint-5"), **values)
    assert read == order[20:]


def test_early_stopping_goes_on_counting(tmp_path: Path) -> None:
    """Stopped after as many evaluations without a better one as if it had not been interrupted."""
    options = {
        "callbacks": lambda: [EarlyStoppingCallback(3)],
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "num_train_epochs": 12,
        "learning_rate": 0.3,
        "load_best_model_at_end": True,
        "metric_for_best_model": "loss",
    }
    whole = resume_from_each(tmp_path, make_model=lambda: Small(0.1), **options)
    assert whole.trainer.state.epoch < 12


def test_a_callback_of_the_user_is_restored(tmp_path: Path) -> None:
    class Counts(TrainerCallback, transformers.trainer_callback.ExportableState):
        def __init__(self, limit: int = 3) -> None:
            self.limit, self.seen = limit, 0

        def on_step_end(self, *given: Any, **others: Any) -> None:
            self.seen += 1

        def state(self) -> dict[str, Any]:
            return {"args": {"limit": self.limit}, "attributes": {"seen": self.seen}}

    whole = train(OURS, tmp_path, callbacks=lambda: [Counts()], **BY_STEPS)
    for restores, expected in ((False, 9), (True, 3)):
        run = train(
            OURS,
            tmp_path,
            callbacks=lambda: [Counts(9)],
            resume=str(whole.folder / "checkpoint-6"),
            restore_callback_states_from_checkpoint=restores,
            **BY_STEPS,
        )
        found = next(each for each in run.trainer.callback_handler.callbacks if type(each).__name__ == "Counts")
        assert (found.limit, found.seen) == (expected, 16)


def test_a_training_that_is_over_is_not_gone_on_with(tmp_path: Path) -> None:
    whole = train(OURS, tmp_path, **BY_STEPS)
    expected = whole.trainer.model.state_dict()
    again = train(OURS, tmp_path, resume=True, **BY_STEPS)
    assert again.output.global_step == 16
    for name, tensor in again.trainer.model.state_dict().items():
        assert torch.equal(tensor, expected[name])


def test_more_epochs_go_on_from_the_end(tmp_path: Path) -> None:
    train(OURS, tmp_path, save_strategy="epoch", num_train_epochs=1)
    run = train(OURS, tmp_path, save_strategy="epoch", num_train_epochs=3, resume=True)
    assert run.output.global_step == 24
    assert [path.name for path in checkpoints_of(run.folder)] == ["checkpoint-8", "checkpoint-16", "checkpoint-24"]


def test_stopped_by_a_callback_and_gone_on(tmp_path: Path) -> None:
    """A save that a callback asks for, somewhere, and a stop."""
    whole = train(OURS, tmp_path / "whole", model=Small(0.3), **BY_STEPS)
    expected = bits(whole)
    for step in (1, 5, 8, 11):
        folder = tmp_path / str(step)
        asks = [Asks("on_step_end", step, should_save=True, should_training_stop=True)]
        train(OURS, folder, model=Small(0.3), callbacks=lambda asks=asks: asks, **BY_STEPS)
        again = train(OURS, folder, model=Small(0.3), resume=True, **BY_STEPS)
        assert difference(bits(again), expected, 0.0) is None, step


# Broken and foreign checkpoints


def lines_of(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("headstart.drop_in"))


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "headstart_state.json", "manifest.json"]
)
def test_a_truncated_newest_checkpoint_is_passed_over(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = train(OURS, tmp_path, model=Small(0.3), **BY_STEPS)
    expected = bits(whole)
    newest = checkpoints_of(whole.folder)[-1]
    content = (newest / name).read_bytes()
    (newest / name).write_bytes(content[: len(content) // 2])
    again = train(OURS, tmp_path, model=Small(0.3), resume=True, **BY_STEPS)
    assert f"{newest} is not whole and was passed over" in lines_of(caplog)
    assert bits(again)["model"] == expected["model"]
    with pytest.raises(CheckpointError, match=newest.name):
        (newest / name).write_bytes(content[: len(content) // 2])
        train(OURS, tmp_path, resume=str(newest), **BY_STEPS)


def test_a_checkpoint_of_another_model(tmp_path: Path) -> None:
    train(OURS, tmp_path, **BY_STEPS)
    with pytest.raises(CheckpointError) as caught:
        train(OURS, tmp_path, model=Small(width=16), resume=True, **BY_STEPS)
    assert caught.value.expected and caught.value.fix


def test_a_checkpoint_without_the_optimizer_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = {**BY_STEPS, "save_only_model": True, "logging_steps": 1}
    whole = train(OURS, tmp_path, **values)
    again = train(OURS, tmp_path, resume=str(whole.folder / "checkpoint-6"), **values)
    assert "its moments start at zero" in lines_of(caplog)
    rates = [
        [line["learning_rate"] for line in run.trainer.state.log_history if "learning_rate" in line]
        for run in (whole, again)
    ]
    assert rates[0] == rates[1]


def test_a_training_set_of_another_length_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = train(OURS, tmp_path, **BY_STEPS)
    train(OURS, tmp_path, rows=make_rows(33), resume=str(whole.folder / "checkpoint-3"), **BY_STEPS)
    assert "had 30 rows when this checkpoint was written, and has 33" in lines_of(caplog)


@pytest.mark.parametrize("step", [6, 12])
def test_a_checkpoint_of_transformers_is_gone_on_with(
    step: int, tiny_model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Weights, place, history and rate are taken; the optimizer's state is a pickle, and is not."""
    values = {**BY_STEPS, "logging_steps": 1, "eval_strategy": "steps", "eval_steps": 3}
    theirs = train(THEIRS, tmp_path, model=make_bert(tiny_model_dir), **values)
    checkpoint = theirs.folder / f"checkpoint-{step}"
    run = start(OURS, tmp_path, model=make_bert(tiny_model_dir, seed=1), **values)
    seen: list[dict[str, Any]] = []

    class Looks(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **others: Any) -> None:
            seen.append({"step": state.global_step, "history": list(state.log_history)})
            seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})

    run.trainer.add_callback(Looks())
    run.trainer.train(resume_from_checkpoint=str(checkpoint))
    saved = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint).state_dict()
    assert seen[0]["step"] == step
    assert seen[0]["history"] == json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    assert all(torch.equal(tensor, saved[name]) for name, tensor in seen[1].items())
    rates = [
        [line["learning_rate"] for line in each.trainer.state.log_history if "learning_rate" in line]
        for each in (run, theirs)
    ]
    assert rates[0] == pytest.approx(rates[1], rel=1e-12)
    assert len(rates[0]) == 16
    said = lines_of(caplog)
    assert "optimizer.pt is a pickle, which is not read" in said
    assert run.trainer.state.global_step == 16
    # The next step sees the same rows with the same weights.
    losses = [
        [line["loss"] for line in each.trainer.state.log_history if "loss" in line][step] for each in (run, theirs)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_transformers_reads_the_weights_and_the_history_of_a_checkpoint(tmp_path: Path) -> None:
    """The way back: its own Trainer finds the folder, and takes what is no pickle."""
    whole = train(OURS, tmp_path, save_strategy="steps", save_steps=4)
    assert get_last_checkpoint(str(whole.folder)) == str(whole.folder / "checkpoint-16")
    theirs = train(THEIRS, tmp_path, resume=str(whole.folder / "checkpoint-12"), save_strategy="no")
    assert theirs.output.global_step == 16


def test_weights_that_are_a_pickle_are_refused(tmp_path: Path) -> None:
    whole = train(OURS, tmp_path, **BY_STEPS)
    folder = tmp_path / THEIRS.name / "checkpoint-3"
    folder.mkdir(parents=True)
    shutil.copy(whole.folder / "checkpoint-3" / "trainer_state.json", folder)
    torch.save(Small().state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="a pickle, which is not read") as caught:
        train(OURS, tmp_path, resume=str(folder), **BY_STEPS)
    assert "save_pretrained" in caught.value.fix


# Signals


class Signals(TrainerCallback):
    """Sends this process a signal when a step has begun."""

    def __init__(self, number: signal.Signals, step: int) -> None:
        self.number, self.step = number, step

    def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), self.number)


SHORT = {"save_strategy": "steps", "save_steps": 2, "logging_steps": 1, "max_steps": 6, "eval_strategy": "epoch"}


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    whole = train(OURS, tmp_path / "whole", model=Small(0.3), **SHORT)
    with pytest.raises(KeyboardInterrupt, match="resume_from_checkpoint=True") as caught:
        train(OURS, tmp_path, model=Small(0.3), callbacks=lambda: [Signals(signal.SIGINT, 2)], **SHORT)
    assert "step 3" in str(caught.value)
    assert [path.name for path in checkpoints_of(tmp_path / "ours")] == ["checkpoint-2", "checkpoint-3"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    again = train(OURS, tmp_path, model=Small(0.3), resume=True, **SHORT)
    assert bits(again)["model"] == bits(whole)["model"]
    assert difference(history(again.trainer, again.folder)[:-1], history(whole.trainer, whole.folder)[:-1], 0.0) is None


def test_sigterm_saves_and_ends_the_process_as_the_signal_would(tmp_path: Path) -> None:
    def work() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        train(OURS, tmp_path, model=Small(0.3), callbacks=lambda: [Signals(signal.SIGTERM, 4)], **SHORT)

    with Forked(work, tmp_path / "printed.txt") as process:
        assert process.wait() == -signal.SIGTERM, process.printed()
    assert "Stopped after saving step 5. Go on: trainer.train(resume_from_checkpoint=True)" in process.printed()
    assert [path.name for path in checkpoints_of(tmp_path / "ours")] == [f"checkpoint-{step}" for step in (2, 4, 5)]


def test_without_checkpoints_ctrl_c_stays_as_it_is(tmp_path: Path) -> None:
    """Nothing could be gone on from, so nothing is finished first."""
    options = {**SHORT, "save_strategy": "no"}
    with pytest.raises(KeyboardInterrupt) as caught:
        train(OURS, tmp_path, callbacks=lambda: [Signals(signal.SIGINT, 2)], **options)
    assert "resume_from_checkpoint" not in str(caught.value)
    assert not checkpoints_of(tmp_path / "ours")


# Kills


class Kills(TrainerCallback):
    """Kills this process at an event of a step."""

    def __init__(self, event: str, step: int) -> None:
        def kill(args: Any, state: Any, control: Any, **others: Any) -> None:
            if state.global_step == step:
                os.kill(os.getpid(), signal.SIGKILL)

        setattr(self, event, kill)


KILLS = {
    "on_step_begin": range(6),
    "on_pre_optimizer_step": range(6),
    "on_step_end": range(1, 7),
    "on_save": (2, 4, 6),
    "on_evaluate": (6,),
}
KILLED_OFTEN = (("on_step_begin", 3), ("on_step_end", 4), ("on_save", 4), ("on_evaluate", 6))


@pytest.mark.parametrize(
    ("event", "step"),
    [
        pytest.param(event, step, marks=[] if (event, step) in KILLED_OFTEN else pytest.mark.exactness)
        for event, steps in KILLS.items()
        for step in steps
    ],
)
def test_killed_and_gone_on(event: str, step: int, tmp_path: Path) -> None:
    expected = bits(train(OURS, tmp_path / "whole", model=Small(0.3), **SHORT))

    def work() -> None:
        train(OURS, tmp_path, model=Small(0.3), callbacks=lambda: [Kills(event, step)], **SHORT)

    with Forked(work, tmp_path / "printed.txt") as process:
        assert process.wait() == -signal.SIGKILL, process.printed()
    found = checkpoints_of(tmp_path / "ours")
    again = train(OURS, tmp_path, model=Small(0.3), resume=bool(found) or None, **SHORT)
    assert difference(bits(again), expected, 0.0) is None


@pytest.mark.parametrize(
    "number", [2, *(pytest.param(number, marks=pytest.mark.exactness) for number in range(1, 12) if number != 2)]
)
def test_killed_inside_a_save(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At one of the calls that make files lasting, of the second save."""
    expected = bits(train(OURS, tmp_path / "whole", model=Small(0.3), **SHORT))
    calls = [0]
    fsync = os.fsync

    def killed(file: int) -> None:
        if checkpoints_of(tmp_path / "ours"):
            calls[0] += 1
            if calls[0] == number:
                os.kill(os.getpid(), signal.SIGKILL)
        fsync(file)

    def work() -> None:
        os.fsync = killed
        train(OURS, tmp_path, model=Small(0.3), **SHORT)

    with Forked(work, tmp_path / "printed.txt") as process:
        assert process.wait() == -signal.SIGKILL, process.printed()
    again = train(OURS, tmp_path, model=Small(0.3), resume=True, **SHORT)
    assert difference(bits(again), expected, 0.0) is None
    assert not [path for path in (tmp_path / "ours").iterdir() if path.name.startswith(".") and path.is_dir()]


def test_two_trainings_do_not_write_into_one_folder(tmp_path: Path) -> None:
    errors: list[Exception] = []

    class Trains(TrainerCallback):
        def on_step_end(self, *given: Any, **others: Any) -> None:
            if not errors:
                errors.append(RuntimeError("asked once"))
                with pytest.raises(headstart.CheckpointError) as caught:
                    train(OURS, tmp_path, **SHORT)
                errors.append(caught.value)

    train(OURS, tmp_path, callbacks=lambda: [Trains()], **SHORT)
    assert isinstance(errors[1], headstart.CheckpointError)


# Several processes


def train_joined(count: int, work: Callable[[], Any], folder: Path) -> list[str]:
    """Do the work in processes that train together, and give what each has printed."""

    def as_rank(rank: int) -> None:
        os.environ["ACCELERATE_USE_CPU"] = "true"
        result = work()
        (folder / f"result-{rank}.json").write_text(json.dumps(result), encoding="utf-8")

    folder.mkdir(parents=True, exist_ok=True)
    processes = start_joined(count, as_rank, folder / "printed")
    codes = join(processes)
    assert codes == [0] * count, "\n".join(process.printed() for process in processes)
    return [process.printed() for process in processes]


def result_of(folder: Path, rank: int) -> Any:
    return json.loads((folder / f"result-{rank}.json").read_text(encoding="utf-8"))


def accuracy(prediction: transformers.EvalPrediction) -> dict[str, Any]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def joined_work(folder: Path, **options: Any) -> Any:
    run = train(OURS, folder, model=Small(0.2), given={"compute_metrics": accuracy}, **options)
    predicted = run.trainer.predict(make_rows(7, seed=3))
    return {
        "history": history(run.trainer, run.folder),
        "metrics": without_times(run.trainer.evaluate(), run.folder),
        "predictions": predicted.predictions.tolist(),
        "labels": predicted.label_ids.tolist(),
    }


JOINED = {"eval_strategy": "epoch", "save_strategy": "epoch", "logging_steps": 1, "learning_rate": 1e-2}


@pytest.mark.parametrize(
    ("count", "options"),
    [
        (2, {"per_device_train_batch_size": 2}),
        # The last update of an epoch leaves two of them without rows.
        (4, {"per_device_train_batch_size": 1}),
        pytest.param(
            2, {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}, marks=pytest.mark.exactness
        ),
    ],
)
def test_processes_together_are_one(count: int, options: dict[str, Any], tmp_path: Path) -> None:
    """The same rows in each update, of 4; 30 rows leave a short one at the end of each epoch."""
    alone = joined_work(tmp_path / "alone", **JOINED, per_device_train_batch_size=4)
    folder = tmp_path / "joined"
    train_joined(count, lambda: joined_work(folder, **JOINED, **options), folder)
    results = [result_of(folder, rank) for rank in range(count)]
    for rank, result in enumerate(results):
        losses, expected = ([line["loss"] for line in each["history"] if "loss" in line] for each in (result, alone))
        assert losses == pytest.approx(expected, rel=PROCESSES_TOLERANCE), rank
        assert [line.get("eval_accuracy") for line in result["history"]] == [
            line.get("eval_accuracy") for line in alone["history"]
        ]
        assert set(result["metrics"]) == set(alone["metrics"])
        assert result["metrics"]["eval_loss"] == pytest.approx(alone["metrics"]["eval_loss"], rel=1e-5)
        assert result["labels"] == alone["labels"]
        flat = [number for row in result["predictions"] for number in row]
        assert flat == pytest.approx([number for row in alone["predictions"] for number in row], rel=1e-4, abs=1e-6)
    names = [path.name for path in checkpoints_of(folder / "ours")]
    assert names == [path.name for path in checkpoints_of(tmp_path / "alone" / "ours")]


def test_one_process_writes(tmp_path: Path) -> None:
    """Files are written, and lines printed, by the first; and a training can be gone on with by one process alone."""
    folder = tmp_path / "joined"

    def work() -> Any:
        writers: list[str] = []
        written = headstart.drop_in.checkpoints.write_whole_folder

        def watched(*given: Any, **options: Any) -> Any:
            writers.append(str(os.environ["RANK"]))
            return written(*given, **options)

        headstart.drop_in.checkpoints.write_whole_folder = watched
        run = train(OURS, folder, model=Small(0.2), per_device_train_batch_size=2, **JOINED)
        return {"writers": writers, "zero": run.trainer.is_world_process_zero()}

    printed = train_joined(2, work, folder)
    assert [result_of(folder, rank) for rank in (0, 1)] == [
        {"writers": ["0", "0"], "zero": True},
        {"writers": [], "zero": False},
    ]
    assert "'loss'" in printed[0] and "'loss'" not in printed[1]
    whole = train(OURS, tmp_path / "alone", model=Small(0.2), per_device_train_batch_size=4, **JOINED)
    options = {**JOINED, "per_device_train_batch_size": 4}
    again = train(OURS, folder, model=Small(0.2), resume=str(folder / "ours" / "checkpoint-8"), **options)
    assert again.losses == pytest.approx(whole.losses, rel=1e-5)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_one_process_ends_all_of_them_after_saving(number: signal.Signals, tmp_path: Path) -> None:
    def work(rank: int) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        joined_work(tmp_path / "joined", **JOINED, callbacks=lambda: [Signals(number, 2)] if rank == 1 else [])

    processes = start_joined(2, work, tmp_path / "printed")
    codes = join(processes)
    printed = [process.printed() for process in processes]
    # Who got none of its own ends as by the signal that launchers send; Ctrl-C ends with a traceback.
    assert codes == [-signal.SIGTERM, 1 if number == signal.SIGINT else -signal.SIGTERM], printed
    way_on = "Stopped after saving step 3. Go on: trainer.train(resume_from_checkpoint=True)"
    assert all(way_on in each for each in printed)
    assert (tmp_path / "joined" / "ours" / "checkpoint-3").exists()
