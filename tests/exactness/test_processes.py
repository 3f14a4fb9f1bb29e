"""Any number of processes trains the same model, stops together, and loses nothing when one of them is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import headstart.prediction
import headstart.training_run
from forked import Forked
from headstart.errors import ProcessLostError, RecipeError, TrainingError
from headstart.runlog import CHECKPOINTS_DIR, StepRecord
from headstart.training.device import count_processes, is_sharded
from headstart.training.fast_adamw import FastAdamW
from headstart.training.state import LoopParts
from joined import join, start_joined
from small_training import Settings, bits_of, finish, start, train_to

Bits = dict[str, Any]

# Sums in another order differ in their last digits; 24 steps of a training carry that on.
LOSS_TOLERANCE = 2e-5
WEIGHT_TOLERANCE = 2e-4
# bfloat16 keeps 8 bits of float32's 24, and where the last of those differs it may round the other way. Measured: 2e-4;
# another seed's losses differ by 5e-2.
BFLOAT16_LOSS_TOLERANCE = 2e-3


def train_joined(
    count: int, settings: Settings, run_dir: Path, *, resume: bool = False, stop: int | None = None
) -> str:
    """Train with several processes to the end, or to a step; gives what they printed."""

    def work(rank: int) -> None:
        preparation = start(settings, run_dir, resume=resume)
        for _ in train_to(preparation, stop):
            pass
        if stop is None:
            preparation.finish()

    folder = run_dir.with_name(f"{run_dir.name}-{count}-{stop}")
    processes = start_joined(count, work, folder)
    codes = join(processes)
    printed = "\n".join(process.printed() for process in processes)
    assert codes == [0] * count, printed
    return printed


def assert_equal_to_rounding(found: Path, expected: Path, but: str = "nothing") -> None:
    """The same rows in each update, and losses, scores and weights that differ by rounding alone.

    Weights whose names end in `but` may differ: the sign of a gradient that is nothing but rounding makes a whole step.
    """
    ours, theirs = bits_of(found)["log"], bits_of(expected)["log"]
    assert len(ours) == len(theirs)
    for record, other in zip(ours, theirs, strict=True):
        exact = {"record", "step", "epoch", "rows", "tokens", "learning_rate", "split", "best"}
        assert {name: record.get(name) for name in exact} == {name: other.get(name) for name in exact}
        for name in ("loss", "grad_norm"):
            assert record.get(name, 0.0) == pytest.approx(other.get(name, 0.0), rel=LOSS_TOLERANCE), record["step"]
        assert record.get("scores", {}) == pytest.approx(other.get("scores", {}), rel=LOSS_TOLERANCE)
    weights = [load_file(folder / "model" / "model.safetensors") for folder in (found, expected)]
    for name, tensor in weights[0].items():
        if not name.endswith(but):
            torch.testing.assert_close(tensor, weights[1][name], rtol=0, atol=WEIGHT_TOLERANCE)


@pytest.fixture(scope="module")
def alone(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Give the run of one process, for any change of the settings; each is trained once."""
    known: dict[str, Path] = {}

    def train_alone(changes: Settings) -> Path:
        key = json.dumps(changes, sort_keys=True)
        if key not in known:
            known[key] = tmp_path_factory.mktemp("alone") / "run"
            finish({**settings, **changes}, known[key])
        return known[key]

    return train_alone


SHORT: list[tuple[int, Settings]] = [
    (2, {}),
    # Updates of three rows, the last of an epoch shorter: processes without rows.
    (4, {"train.batch_size": 3, "train.accumulation": 1, "train.epochs": 1}),
]
WHOLE: list[tuple[int, Settings]] = [
    (count, changes)
    for count in (1, 2, 3, 4)
    for changes in (
        {},
        {"train.accumulation": 1},
        {"train.accumulation": 3, "train.batch_size": 1},
        {"train.batch_size": None, "train.tokens_per_batch": 60, "train.accumulation": 1},
        {"train.order": "random", "optim.name": "sgd", "optim.learning_rate": 0.1},
    )
]


@pytest.mark.parametrize(
    ("count", "changes"), [*SHORT, *(pytest.param(*case, marks=pytest.mark.exactness) for case in WHOLE)]
)
def test_any_number_trains_the_same_model(
    count: int, changes: Settings, settings: Settings, alone: Callable[..., Path], tmp_path: Path
) -> None:
    train_joined(count, {**settings, **changes}, tmp_path / "run")
    assert_equal_to_rounding(tmp_path / "run", alone(changes))


@pytest.mark.parametrize("count", [3, *(pytest.param(count, marks=pytest.mark.exactness) for count in (2, 4))])
def test_any_number_trains_the_same_model_in_bfloat16(
    count: int, settings: Settings, alone: Callable[..., Path], tmp_path: Path
) -> None:
    changes = {"train.precision": "bf16"}
    train_joined(count, {**settings, **changes}, tmp_path / "run")

    def losses(run_dir: Path) -> list[float]:
        return [record["loss"] for record in bits_of(run_dir)["log"] if record["record"] == "step"]

    expected = losses(alone(changes))
    assert losses(tmp_path / "run") == pytest.approx(expected, rel=BFLOAT16_LOSS_TOLERANCE)
    assert losses(alone({**changes, "train.seed": 1})) != pytest.approx(expected, rel=10 * BFLOAT16_LOSS_TOLERANCE)


def test_the_same_number_trains_the_same_bits_and_resumes_to_them(settings: Settings, tmp_path: Path) -> None:
    for name in ("first", "second"):
        train_joined(2, settings, tmp_path / name)
    train_joined(2, settings, tmp_path / "stopped", stop=7)
    train_joined(2, settings, tmp_path / "stopped", resume=True)
    assert bits_of(tmp_path / "first") == bits_of(tmp_path / "second") == bits_of(tmp_path / "stopped")


def test_a_run_goes_on_with_another_number_and_back(
    settings: Settings, alone: Callable[..., Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train_joined(2, settings, run, stop=5)
    for _ in train_to(start(settings, run, resume=True), 11):
        pass
    train_joined(3, settings, run, resume=True, stop=17)
    finish(settings, run, resume=True)
    assert_equal_to_rounding(run, alone({}))


@pytest.mark.parametrize("count", [2, 3])
def test_every_row_is_predicted_once(
    count: int, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the last batch is short and the number of batches is no multiple of the processes."""
    seen = tmp_path / "seen"
    seen.mkdir()
    prediction_batches = headstart.prediction.prediction_batches
    deal = headstart.prediction.deal_in_turn

    def note(batches: list[np.ndarray], rank: int, processes: int) -> list[np.ndarray]:
        own = deal(batches, rank, processes)
        with (seen / f"{rank}.txt").open("a") as file:
            file.write(json.dumps([int(row) for batch in own for row in batch]) + "\n")
        return own

    monkeypatch.setattr(headstart.prediction, "deal_in_turn", note)
    monkeypatch.setattr(
        headstart.prediction,
        "prediction_batches",
        lambda lengths, batch_size: prediction_batches(lengths, batch_size=2),
    )
    train_joined(count, {**settings, "train.epochs": 1, "train.evaluate_every": 4}, tmp_path / "run", stop=8)
    lines = [[json.loads(line) for line in path.read_text().splitlines()] for path in sorted(seen.iterdir())]
    assert len(lines) == count and len(lines[0]) == 2
    for evaluation in zip(*lines, strict=True):
        assert sorted(row for rows in evaluation for row in rows) == list(range(7))


def test_one_process_writes(settings: Settings, tmp_path: Path) -> None:
    """The others open nothing below the run folder for writing, and make and move nothing there."""
    run_dir = tmp_path / "run"

    def work(rank: int) -> int:
        import sys

        written: list[str] = []

        def note(event: str, arguments: tuple[Any, ...]) -> None:
            if event == "open":
                path, _, flags = arguments
                writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            else:
                path, writes = (arguments or ("",))[0], event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir")
            if writes and isinstance(path, str | bytes | Path) and str(run_dir) in os.fsdecode(path):
                written.append(f"{event} {path!r}")

        sys.addaudithook(note)
        for _ in start(settings, run_dir).train():
            pass
        print(rank, written)
        return 0 if bool(written) == (rank == 0) else 1

    processes = start_joined(2, work, tmp_path / "printed")
    assert join(processes) == [0, 0], [process.printed() for process in processes]


def wait_for_step(run_dir: Path, step: int, process: Forked) -> None:
    log = run_dir / "log.jsonl"
    process.wait_until(lambda: log.exists() and f'"record": "step", "step": {step},' in log.read_text())


def start_slow(settings: Settings, run_dir: Path, folder: Path, count: int = 2) -> list[Forked]:
    """Start processes that say how they end, with steps that are long enough to be met in their middle."""

    def work(rank: int) -> int:
        preparation = start(settings, run_dir)
        try:
            for record in preparation.train():
                if isinstance(record, StepRecord):
                    time.sleep(0.02)
        except ProcessLostError as error:
            print(f"lost {error.ranks}: {error}")
            return 7
        return 0

    return start_joined(count, work, folder)


@pytest.fixture
def reaped() -> Iterator[list[Forked]]:
    """Leave no process behind, however the test ends."""
    processes: list[Forked] = []
    yield processes
    for process in processes:
        if not process.has_ended():
            process.send(signal.SIGKILL)
            process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_worker_ends_the_run_with_a_checkpoint_of_its_last_step(
    how: signal.Signals, settings: Settings, alone: Callable[..., Path], tmp_path: Path, reaped: list[Forked]
) -> None:
    """Killed, or hanging for longer than the time that is allowed."""
    run = tmp_path / "run"
    slow = {**settings, "train.save_every": None, "train.evaluate_every": 20, "train.process_timeout": "0.05 minutes"}
    reaped += start_slow(slow, run, tmp_path / "printed")
    wait_for_step(run, 5, reaped[0])
    reaped[1].send(how)
    assert reaped[0].wait() == 7, reaped[0].printed()
    assert "lost [1]: Process 1 of 2 (counted from 0) was lost" in reaped[0].printed()
    assert f"headstart train --resume --run {run}" in reaped[0].printed()
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    last_step = max(record["step"] for record in log if record["record"] == "step")
    assert last_step >= 5
    assert [path.name for path in (run / CHECKPOINTS_DIR).iterdir()] == [f"step-{last_step:06d}"]
    assert log[-1]["record"] == "stop" and log[-1]["reason"] == "process_lost"
    finish(slow, run, resume=True)
    assert_equal_to_rounding(run, alone({"train.save_every": None, "train.evaluate_every": 20}))


def test_the_writer_lost_is_named_by_the_others(settings: Settings, tmp_path: Path, reaped: list[Forked]) -> None:
    run = tmp_path / "run"
    reaped += start_slow(settings, run, tmp_path / "printed")
    wait_for_step(run, 5, reaped[0])
    reaped[0].send(signal.SIGKILL)
    assert reaped[1].wait() == 7, reaped[1].printed()
    assert "lost [0]" in reaped[1].printed()
    finish(settings, run, resume=True)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_request_to_one_process_stops_all_of_them(rank: int, settings: Settings, tmp_path: Path) -> None:
    run = tmp_path / "run"

    def work(own: int) -> int:
        preparation = start(settings, run)
        reasons = []
        for record in preparation.train():
            if own == rank and isinstance(record, StepRecord) and record.step == 4:
                preparation.requests.add("stop")
            reasons.append(getattr(record, "reason", None))
        print(reasons)
        return 0 if reasons[-1] == "requested" else 1

    processes = start_joined(2, work, tmp_path / "printed")
    assert join(processes) == [0, 0], [process.printed() for process in processes]


def test_no_process_ends_before_the_run_is_saved(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launcher stops all processes once one has ended, also the one that still writes."""
    run = tmp_path / "run"
    save = headstart.training_run.RunWriter.save

    def save_slowly(*args: Any) -> list[str]:
        time.sleep(0.5)
        return save(*args)

    monkeypatch.setattr(headstart.training_run.RunWriter, "save", save_slowly)

    def work(own: int) -> int:
        for _ in train_to(start({**settings, "train.save_every": None}, run), 4):
            pass
        return 0 if (run / CHECKPOINTS_DIR / "step-000004").exists() else 1

    assert join(start_joined(2, work, tmp_path / "printed")) == [0, 0]


@pytest.mark.parametrize("point", ["make_batch", "forward", "backward", "clip", "optimizer"])
def test_memory_that_runs_out_in_one_process_splits_the_update_in_all(
    point: str, settings: Settings, alone: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails_once = {"at": 3, "rank": 1, "done": False}

    def fail(step: int) -> None:
        if os.environ.get("RANK") == "1" and step == fails_once["at"] and not fails_once["done"]:
            fails_once["done"] = True
            raise MemoryError(point)

    make_parts = headstart.training_run._loop_parts

    def parts_that_fail(plan: Any, *rest: Any) -> LoopParts:
        parts = make_parts(plan, *rest)
        from dataclasses import replace

        def make_batch(rows: np.ndarray) -> Any:
            if point == "make_batch":
                fail(plan.state.step)
            return parts.make_batch(rows)

        def micro_batch(model: Any, batch: Any, num_targets: int) -> Any:
            if point == "forward":
                fail(plan.state.step)
            loss, count = parts.micro_batch(model, batch, num_targets)
            if point == "backward":
                loss.register_hook(lambda gradient: fail(plan.state.step))
            return loss, count

        return replace(parts, make_batch=make_batch, micro_batch=micro_batch)

    monkeypatch.setattr(headstart.training_run, "_loop_parts", parts_that_fail)
    if point == "clip":
        clip = FastAdamW.clip
        calls = iter(range(10**6))

        def clip_that_fails(*given: Any, **named: Any) -> torch.Tensor:
            fail(next(calls))
            return clip(*given, **named)

        monkeypatch.setattr(FastAdamW, "clip", clip_that_fails)
    if point == "optimizer":
        make_step = FastAdamW.step
        steps = iter(range(10**6))

        def step_that_fails(self: Any, *given: Any) -> Any:
            fail(next(steps))
            return make_step(self, *given)

        monkeypatch.setattr(FastAdamW, "step", step_that_fails)
    train_joined(2, settings, tmp_path / "run")
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    warnings = [record for record in log if record["record"] == "warning"]
    # The optimizer tries again by itself, before anything has changed.
    assert [record["kind"] for record in warnings] == ([] if point == "optimizer" else ["out_of_memory"])
    assert_equal_to_rounding(tmp_path / "run", alone({}))


def test_an_evaluation_that_fails_in_one_process_fails_in_all_and_costs_the_scores_alone(
    settings: Settings, alone: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headstart.tasks import SequenceClassification

    decode = SequenceClassification.decode

    def fail(self: Any, outputs: Any, batch: Any) -> np.ndarray:
        if os.environ.get("RANK") == "1":
            raise ArithmeticError("made up")
        return decode(self, outputs, batch)

    monkeypatch.setattr(SequenceClassification, "decode", fail)
    monkeypatch.setattr(
        headstart.prediction, "prediction_batches", lambda lengths, batch_size: [np.array([row]) for row in range(7)]
    )
    train_joined(2, settings, tmp_path / "run", stop=24)
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    kinds = [record["kind"] for record in log if record["record"] == "warning"]
    assert kinds == ["evaluation"] * 5
    losses = [
        [line["loss"] for line in lines if line["record"] == "step"] for lines in (log, bits_of(alone({}))["log"])
    ]
    assert losses[0] == pytest.approx(losses[1], rel=LOSS_TOLERANCE)


def test_processes_that_do_not_train_the_same_are_refused(settings: Settings, tmp_path: Path) -> None:
    def work(rank: int) -> int:
        preparation = start({**settings, "train.seed": rank}, tmp_path / "run")
        try:
            list(preparation.train())
        except TrainingError as error:
            print(error)
            return 7
        return 0

    processes = start_joined(2, work, tmp_path / "printed")
    assert join(processes) == [7, 7], [process.printed() for process in processes]
    assert "recipe, train.seed is 0 and 1" in processes[0].printed()


def test_rows_in_memory_are_refused(settings: Settings, tmp_path: Path) -> None:
    from headstart.api import prepare

    rows = [{"text": f"a {word} film {number}", "label": word} for number in range(20) for word in ("good", "bad")]
    values = {"model.checkpoint": settings["model.checkpoint"], "train.processes": 2, "output.run": str(tmp_path / "r")}
    with pytest.raises(RecipeError, match="rows are in memory"):
        prepare(rows, values=values)


WAYS: dict[str, Settings] = {
    "adafactor": {"optim.name": "adafactor"},
    "nadam": {"optim.name": "nadam"},
    "radam": {"optim.name": "radam"},
    "lion": {"optim.name": "lion", "optim.learning_rate": 1e-4},
    "adan": {"optim.name": "adan", "optim.schedule": "one_cycle"},
    "prodigy": {"optim.name": "prodigy", "optim.learning_rate": 1.0, "optim.d_coef": 0.1},
    "plateau": {"optim.schedule": "plateau", "optim.plateau_patience": 0},
    "layers": {"optim.layer_decay": 0.5, "model.freeze": "embeddings"},
    "unfrozen": {"model.unfreeze_every": 5, "train.ema": 0.9, "optim.schedule": "cosine_with_restarts"},
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in ("unfrozen",) else pytest.mark.exactness) for name in WAYS]
)
def test_every_way_to_learn_is_the_same_with_any_number(
    name: str, settings: Settings, alone: Callable[..., Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train_joined(3, {**settings, **WAYS[name]}, run, stop=7)
    train_joined(2, settings, run, resume=True)
    assert_equal_to_rounding(run, alone(WAYS[name]), but=".key.bias" if name == "lion" else "nothing")


IN_PARTS = ("nadam", "radam", "lion", "adan", "plateau", "layers")


@pytest.mark.exactness
@pytest.mark.parametrize("name", IN_PARTS)
def test_ways_to_learn_of_a_sharded_model(
    name: str, settings: Settings, alone: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in FSDP.items():
        monkeypatch.setenv(variable, value)
    run = tmp_path / "run"
    train_joined(2, {**settings, **WAYS[name]}, run, stop=7)
    train_joined(2, settings, run, resume=True)
    assert_equal_to_rounding(run, alone(WAYS[name]), but=".key.bias" if name == "lion" else "nothing")


@pytest.mark.parametrize(
    ("changes", "instead"),
    [
        ({"optim.name": "adafactor"}, "optim.name=adamw"),
        ({"optim.name": "prodigy"}, "optim.name=adamw"),
        ({"train.ema": 0.9}, "train.ema=null"),
        ({"model.unfreeze_every": 5}, "model.unfreeze_every=null"),
        ({"train.on_non_finite": "rollback"}, "train.on_non_finite=stop"),
    ],
)
def test_what_needs_a_whole_model_is_refused_where_each_process_holds_a_part(
    changes: Settings, instead: str, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in FSDP.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(RecipeError, match=f"holds a part of the model only(?s:.)*Set {instead}"):
        start({**settings, **changes, "train.processes": 2}, tmp_path / "run")


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "mpirun has started 2 processes"),
        ({"PMI_SIZE": "3"}, "mpirun has started 3 processes"),
        ({"SLURM_STEP_NUM_TASKS": "4"}, "srun has started 4 processes"),
        ({"LOCAL_WORLD_SIZE": "2"}, "do not know of each other"),
        ({"WORLD_SIZE": "2"}, "RANK and MASTER_ADDR and MASTER_PORT is not set"),
    ],
)
def test_processes_that_were_started_but_not_joined_are_refused(
    variables: dict[str, str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TrainingError, match=sentence):
        count_processes(None)


FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "BertLayer",
}


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"train.batch_size": 3, "train.accumulation": 1, "optim.name": "sgd"}])
def test_a_sharded_model_is_the_same_model(
    changes: Settings, settings: Settings, alone: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process holds a part; stopped, gone on with sharded, and ended by one process that holds all of it."""
    for name, value in FSDP.items():
        monkeypatch.setenv(name, value)
    run = tmp_path / "run"
    train_joined(2, {**settings, **changes}, run, stop=5)
    train_joined(3, settings, run, resume=True, stop=11)
    finish(settings, run, resume=True)
    assert_equal_to_rounding(run, alone(changes))
    train_joined(2, {**settings, **changes}, tmp_path / "whole")
    assert_equal_to_rounding(tmp_path / "whole", alone(changes))


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed"),
        ({**FSDP, "FSDP_VERSION": "1"}, "version 1 of FSDP"),
        ({**FSDP, "FSDP_ACTIVATION_CHECKPOINTING": "true"}, "FSDP with activation checkpointing"),
    ],
)
def test_what_accelerate_is_configured_for_is_refused_rather_than_ignored(
    variables: dict[str, str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TrainingError, match=f"accelerate is configured for {sentence}"):
        is_sharded(2)


def test_a_number_that_differs_from_what_was_started_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert count_processes(None) == count_processes(2) == 2
    with pytest.raises(RecipeError, match=r"train\.processes is 3, but 2 processes were started"):
        count_processes(3)


def test_a_timeout_without_other_processes_is_refused(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="process_timeout has no effect"):
        start({**settings, "train.process_timeout": "1 minute"}, tmp_path / "run")


def command_of(settings: Settings, run: Path) -> list[str]:
    """Give the words of `headstart train` for these settings."""
    words = [word for name, value in settings.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    return ["train", "--set", f"output.run={run}", "--quiet", *words]


def run_command(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        words,
        env=dict(os.environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_in_log(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    log = run / "log.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and f'"record": "step", "step": {step},' in log.read_text()):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.01)


@pytest.mark.exactness
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_starts_the_others_stops_with_them_and_goes_on(
    number: signal.Signals, settings: Settings, alone: Callable[..., Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = run_command(sys.executable, "-m", "headstart", *command_of({**settings, "train.processes": 2}, run))
    wait_in_log(run, 4, process)
    process.send_signal(number)
    output = process.communicate()[0]
    assert process.returncode == 128 + number and f"headstart train --resume --run {run}" in output
    process = run_command(sys.executable, "-m", "headstart", "train", "--resume", "--run", str(run), "--quiet")
    output = process.communicate()[0]
    assert process.returncode == 0, output
    assert_equal_to_rounding(run, alone({}))


@pytest.mark.exactness
def test_the_command_says_how_a_worker_ended(settings: Settings, alone: Callable[..., Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = run_command(sys.executable, "-m", "headstart", *command_of({**settings, "train.processes": 2}, run))
    wait_in_log(run, 3, process)
    (worker,) = (int(word) for word in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
    os.kill(worker, signal.SIGKILL)
    output = process.communicate()[0]
    assert process.returncode == 2 and f"Process 1 (PID {worker}) was killed by SIGKILL." in output
    finish(settings, run, resume=True)
    assert_equal_to_rounding(run, alone({}))


def torchrun(*words: str) -> subprocess.Popen[str]:
    return run_command(
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", *words,
    )  # fmt: skip


@pytest.mark.exactness
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_torchrun_passes_a_signal_on_and_goes_on(
    number: signal.Signals, settings: Settings, alone: Callable[..., Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = torchrun("--", "headstart", *command_of(settings, run))
    wait_in_log(run, 4, process)
    process.send_signal(number)
    output = process.communicate()[0]
    assert output.count(f"headstart train --resume --run {run}") == 1, output
    assert "SIGKILL" not in output  # what torchrun does to a process that does not end
    process = torchrun("--", "headstart", "train", "--resume", "--run", str(run), "--quiet")
    output = process.communicate()[0]
    assert process.returncode == 0, output
    assert_equal_to_rounding(run, alone({}))
    # Once more: it is finished, and one process says so.
    output = torchrun("--", "headstart", "train", "--resume", "--run", str(run)).communicate()[0]
    assert output.count("nothing is left to do") == output.count("The result") == 1, output


@pytest.mark.exactness
def test_torchrun_trains_the_same_model(settings: Settings, alone: Callable[..., Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = torchrun("headstart", *command_of(settings, run))
    output = process.communicate()[0]
    assert process.returncode == 0, output
    assert_equal_to_rounding(run, alone({}))
