"""Stopped by signals, and met by a second process: the run goes on to the same bits, and one process at a time writes.

Signals come inside a step, sent by a forward pass in it, or from another process at a random moment.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import headstart
from forked import Forked
from headstart.cli.main import main
from headstart.display.progress import Progress
from headstart.errors import CheckpointError, NonFiniteError
from headstart.runlog import (
    CARD_FILE,
    CHECKPOINTS_DIR,
    LOCK_FILE,
    MODEL_DIR,
    SCORES_FILE,
    Record,
    StepRecord,
    StopRecord,
    read_log,
)
from headstart.training.checkpoint import newest_checkpoint
from small_training import Settings, bits_of, start

SIGNALS = (signal.SIGINT, signal.SIGTERM)
ONCE_MORE = "once more to leave at once"
STEP = 4  # the signals come in it; it is not one that is saved anyway


@pytest.fixture(scope="module")
def short(settings: Settings) -> Settings:
    """Give a training of 8 steps that saves after 3 and 6, and after 5 because of the evaluation."""
    return {**settings, "train.epochs": 1}


@pytest.fixture(scope="module")
def whole(whole_run: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    return whole_run(train__epochs=1)


def as_texts(settings: Settings) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]


def train_words(settings: Settings, run_dir: Path) -> list[str]:
    return ["train", "--run", str(run_dir), *(word for text in as_texts(settings) for word in ("--set", text))]


def resume_words(run_dir: Path) -> list[str]:
    return ["train", "--resume", "--run", str(run_dir)]


def last_step(run_dir: Path) -> int:
    return max((record.step for record in read_log(run_dir) if isinstance(record, StepRecord)), default=0)


def has_checkpoint(run_dir: Path) -> bool:
    return any((run_dir / CHECKPOINTS_DIR).glob("step-*"))


def saved_step(run_dir: Path) -> int:
    checkpoint, messages = newest_checkpoint(run_dir)
    assert checkpoint is not None and not messages
    return checkpoint.step


@contextlib.contextmanager
def before_each_module(hear: Callable[[torch.nn.Module, object], None]) -> Iterator[None]:
    """Call a function before each module of each forward pass.

    Not by a hook: where hooks look on, the fast path leaves nothing out, and rounds otherwise.
    """
    call = torch.nn.Module.__call__

    def hear_and_call(module: torch.nn.Module, *inputs: object, **named: object) -> object:
        hear(module, inputs)
        return call(module, *inputs, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.Module, "__call__", hear_and_call)
        yield


def in_step(run_dir: Path, act: Callable[[], None]) -> contextlib.AbstractContextManager[None]:
    """Act once, in a forward pass of the second micro-batch of a step."""
    number = 0

    def before_forward(module: torch.nn.Module, inputs: object) -> None:
        nonlocal number
        # Every module comes here, some fifty a pass. Before a training its model is tried out, too.
        if module.training and last_step(run_dir) == STEP - 1:
            number += 1
            if number == 60:
                act()

    return before_each_module(before_forward)


def in_scoring(run_dir: Path, act: Callable[[], None]) -> contextlib.AbstractContextManager[None]:
    """Act once, in a forward pass of the saved model."""
    has_come = False

    def before_forward(module: torch.nn.Module, inputs: object) -> None:
        nonlocal has_come
        if not has_come and (run_dir / MODEL_DIR).exists():
            has_come = True
            act()

    return before_each_module(before_forward)


def send(*numbers: signal.Signals) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


def wait_for(file: Path) -> None:
    """Stay in this step until another process makes the file; a run whose test has failed does not stay forever."""
    deadline = time.monotonic() + 60
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.001)


def run(words: list[str], output: Path, hook: contextlib.AbstractContextManager[None] | None = None) -> Forked:
    """Run the command in a forked process."""

    def work() -> int:
        with hook or contextlib.nullcontext():
            return main(words)

    return Forked(work, output)


# The command


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_finishes_the_step_saves_and_names_the_command_that_goes_on(
    number: signal.Signals, short: Settings, whole: dict[str, Any], tmp_path: Path
) -> None:
    run_dir, output = tmp_path / "it's a run", tmp_path / "output.txt"
    with run(train_words(short, run_dir), output, in_step(run_dir, lambda: send(number))) as process:
        assert process.wait() == 128 + number, process.printed()
    *_, stop = read_log(run_dir)
    assert isinstance(stop, StopRecord) and (stop.step, stop.reason) == (STEP, "requested")
    assert saved_step(run_dir) == last_step(run_dir) == STEP
    assert not (run_dir / SCORES_FILE).exists()
    program, *words = shlex.split(process.printed().splitlines()[-1])
    assert program == "headstart"
    with run(words, output) as process:
        assert process.wait() == 0, process.printed()
    assert bits_of(run_dir) == whole


@pytest.mark.parametrize(
    ("first", "second"),
    [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGTERM)],
)
def test_a_second_signal_leaves_at_once(
    first: signal.Signals, second: signal.Signals, short: Settings, whole: dict[str, Any], tmp_path: Path
) -> None:
    run_dir, output = tmp_path / "run", tmp_path / "output.txt"

    def begin_a_step_without_end() -> None:
        send(first)
        wait_for(tmp_path / "never")

    with run(train_words(short, run_dir), output, in_step(run_dir, begin_a_step_without_end)) as process:
        process.wait_until(lambda: ONCE_MORE in process.printed())
        process.send(second)
        assert process.wait() == 128 + second, process.printed()
    assert (saved_step(run_dir), last_step(run_dir)) == (STEP - 1, STEP - 1)
    with run(resume_words(run_dir), output) as process:
        assert process.wait() == 0, process.printed()
    assert bits_of(run_dir) == whole


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_scoring_leaves_at_once(
    number: signal.Signals, short: Settings, whole: dict[str, Any], tmp_path: Path
) -> None:
    run_dir, output = tmp_path / "run", tmp_path / "output.txt"
    with run(train_words(short, run_dir), output, in_scoring(run_dir, lambda: send(number))) as process:
        assert process.wait() == 128 + number, process.printed()
    assert not (run_dir / SCORES_FILE).exists()
    with run(shlex.split(process.printed().splitlines()[-1])[1:], output) as process:
        assert process.wait() == 0, process.printed()
    assert bits_of(run_dir) == whole


@pytest.mark.exactness
@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
def test_signals_at_random_moments(twice: bool, short: Settings, whole: dict[str, Any], tmp_path: Path) -> None:
    moments = random.Random(0)
    seconds, number_of_stops, number_of_runs = 0.0, 0, 0
    while number_of_stops < 20:
        run_dir, output = tmp_path / f"run-{number_of_runs}", tmp_path / f"{number_of_runs}.txt"
        number = moments.choice(SIGNALS)
        with run(train_words(short, run_dir), output) as process:
            process.wait_until(functools.partial(has_checkpoint, run_dir))
            began = time.monotonic()
            if number_of_runs:
                time.sleep(moments.random() * seconds)
                if twice:
                    # When it goes on, both have come; which is the second one is for the threads that take them to say.
                    for each in (signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGCONT):
                        process.send(each)
                else:
                    process.send(number)
            code = process.wait()
        if number_of_runs == 0:
            assert code == 0, process.printed()
            seconds = time.monotonic() - began
        elif not (run_dir / CARD_FILE).exists():
            number_of_stops += 1
            assert code - 128 in (SIGNALS if twice else [number]), process.printed()
            with run(resume_words(run_dir), output) as process:
                assert process.wait() == 0, process.printed()
        assert bits_of(run_dir) == whole
        number_of_runs += 1


@pytest.mark.exactness
@pytest.mark.parametrize("number", [*SIGNALS, signal.SIGKILL])
def test_the_command_goes_on_in_a_shell(
    number: signal.Signals,
    settings: Settings,
    whole_run: Callable[..., dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a user does it: two programs, started anew, the second one as the first one has printed it."""
    program = tmp_path / "bin" / "headstart"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m headstart "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setenv("PYTHONPATH", str(Path(headstart.__file__).parents[1]), prepend=os.pathsep)
    run_dir, output = tmp_path / "it's a run", tmp_path / "output.txt"
    # So long that the signal comes before the end.
    words = train_words({**settings, "train.epochs": 10}, run_dir)
    with output.open("w") as file, subprocess.Popen(["headstart", *words], stdout=file, stderr=file) as process:
        while last_step(run_dir) < STEP and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(number)
    printed = output.read_text(encoding="utf-8")
    assert last_step(run_dir) < 80, printed
    if number == signal.SIGKILL:
        assert process.returncode == -number, printed
        command = shlex.join(["headstart", *resume_words(run_dir)])
    else:
        assert process.returncode == 128 + number, printed
        command = printed.splitlines()[-1]
    done = subprocess.run(command, shell=True, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert bits_of(run_dir) == whole_run(train__epochs=10)


# finetune(), whose process is a notebook or a program of the user


def finetune(settings: Settings, run_dir: Path, **given: Any) -> headstart.Run:
    return headstart.finetune(run=run_dir, settings=as_texts(settings), **given)


@contextlib.contextmanager
def handlers_given_back() -> Iterator[None]:
    before = [signal.getsignal(number) for number in SIGNALS]
    try:
        yield
        assert [signal.getsignal(number) for number in SIGNALS] == before
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)


def go_on_as_said(message: str) -> headstart.Run:
    """Run the call that a message names."""
    finished = eval(message.splitlines()[-1], {"headstart": headstart})
    assert isinstance(finished, headstart.Run)
    return finished


def test_handlers_are_given_back_after_success(short: Settings, whole: dict[str, Any], tmp_path: Path) -> None:
    with handlers_given_back():
        finetune(short, tmp_path / "run")
    assert bits_of(tmp_path / "run") == whole


def test_handlers_are_given_back_after_an_error(short: Settings, tmp_path: Path) -> None:
    with handlers_given_back(), pytest.raises(NonFiniteError):
        finetune({**short, "optim.learning_rate": 1e30}, tmp_path / "run")


def test_handlers_are_given_back_after_an_interruption_that_is_no_signal(short: Settings, tmp_path: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with handlers_given_back(), in_step(tmp_path / "run", interrupt), pytest.raises(KeyboardInterrupt):
        finetune(short, tmp_path / "run")


@pytest.mark.parametrize("progress", [True, False])
def test_ctrl_c_finishes_the_step_saves_and_says_the_call_that_goes_on(
    progress: bool, short: Settings, whole: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "it's a run"
    with (
        handlers_given_back(),
        in_step(run_dir, lambda: send(signal.SIGINT)),
        pytest.raises(KeyboardInterrupt, match="Stopped after saving") as stopped,
    ):
        finetune(short, run_dir, progress=progress)
    assert ONCE_MORE in capfd.readouterr().err
    assert saved_step(run_dir) == last_step(run_dir) == STEP
    assert go_on_as_said(str(stopped.value)).run_dir == run_dir
    assert bits_of(run_dir) == whole


def test_ctrl_c_while_scoring_says_the_call_that_goes_on(
    short: Settings, whole: dict[str, Any], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    with (
        handlers_given_back(),
        in_scoring(run_dir, lambda: send(signal.SIGINT)),
        pytest.raises(KeyboardInterrupt, match="Stopped after saving") as stopped,
    ):
        finetune(short, run_dir)
    assert not (run_dir / SCORES_FILE).exists()
    go_on_as_said(str(stopped.value))
    assert bits_of(run_dir) == whole


@pytest.mark.parametrize("place", ["in a step", "while a step is shown"])
def test_a_second_ctrl_c_leaves_at_once(
    place: str, short: Settings, whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And frees the folder at once, while the notebook still keeps the traceback."""
    run_dir = tmp_path / "run"
    update = Progress.update
    hook: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if place == "in a step":
        hook = in_step(run_dir, lambda: send(signal.SIGINT, signal.SIGINT))
    else:

        def update_and_send(self: Progress, record: Record) -> None:
            update(self, record)
            if isinstance(record, StepRecord) and record.step == STEP:
                send(signal.SIGINT, signal.SIGINT)

        monkeypatch.setattr(Progress, "update", update_and_send)
    with handlers_given_back(), hook, pytest.raises(KeyboardInterrupt) as stopped:
        finetune(short, run_dir)
    assert stopped.traceback and saved_step(run_dir) == STEP - 1
    monkeypatch.undo()
    headstart.finetune(run=run_dir, resume=True)
    assert bits_of(run_dir) == whole


def test_sigterm_saves_and_is_given_on_to_the_handler_of_the_program(
    short: Settings, whole: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, steps = tmp_path / "run", []
    with handlers_given_back():
        signal.signal(signal.SIGTERM, lambda number, frame: steps.append(saved_step(run_dir)))
        own = signal.getsignal(signal.SIGTERM)
        with in_step(run_dir, lambda: send(signal.SIGTERM)), pytest.raises(KeyboardInterrupt):
            finetune(short, run_dir)
        assert steps == [STEP] and signal.getsignal(signal.SIGTERM) is own
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    go_on_as_said(capsys.readouterr().err)
    assert bits_of(run_dir) == whole


def test_sigterm_saves_and_ends_a_program_without_a_handler(
    short: Settings, whole: dict[str, Any], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"

    def work() -> None:
        with in_step(run_dir, lambda: send(signal.SIGTERM)):
            finetune(short, run_dir)

    with Forked(work, tmp_path / "output.txt") as process:
        assert process.wait() == -signal.SIGTERM, process.printed()
    assert saved_step(run_dir) == STEP
    go_on_as_said(process.printed())
    assert bits_of(run_dir) == whole


def test_a_signal_that_is_ignored_stays_ignored(short: Settings, whole: dict[str, Any], tmp_path: Path) -> None:
    with handlers_given_back():
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            with in_step(tmp_path / "run", lambda: send(signal.SIGINT)):
                finetune(short, tmp_path / "run")
        except KeyboardInterrupt as error:
            raise AssertionError("it was heard") from error  # and would end the test run
        assert signal.signal(signal.SIGINT, before) is signal.SIG_IGN
    assert bits_of(tmp_path / "run") == whole


def test_in_another_thread_signals_are_left_alone(
    short: Settings, whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python handles signals in the main thread, and lets no other one set a handler."""
    handled: list[object] = []
    monkeypatch.setattr(signal, "signal", lambda *given: handled.append(given))
    thread = threading.Thread(target=finetune, args=(short, tmp_path / "run"))
    thread.start()
    thread.join()
    assert not handled
    assert bits_of(tmp_path / "run") == whole


def test_rows_in_memory_must_be_given_again(short: Settings, tmp_path: Path) -> None:
    import csv

    with Path(short["data.train"]).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    own = {key: value for key, value in short.items() if key != "data.train"}
    finetune(own, tmp_path / "whole", source=rows)
    run_dir = tmp_path / "run"
    with (
        in_step(run_dir, lambda: send(signal.SIGINT)),
        pytest.raises(KeyboardInterrupt, match=r"with the same rows:\n  headstart\.finetune\(\.\.\., run=") as stopped,
    ):
        finetune(own, run_dir, source=rows)
    call = str(stopped.value).splitlines()[-1].replace("...", "rows")
    eval(call, {"headstart": headstart, "rows": rows})
    assert bits_of(run_dir) == bits_of(tmp_path / "whole")


# Two processes on one run folder


@pytest.mark.parametrize("place", [in_step, in_scoring])
def test_a_second_process_is_refused_with_who_holds_the_run(
    place: Callable[..., contextlib.AbstractContextManager[None]],
    short: Settings,
    whole: dict[str, Any],
    tmp_path: Path,
) -> None:
    run_dir, there, goes_on = tmp_path / "run", tmp_path / "there", tmp_path / "goes on"

    def wait() -> None:
        there.touch()
        wait_for(goes_on)

    with run(train_words(short, run_dir), tmp_path / "first.txt", place(run_dir, wait)) as first:
        first.wait_until(there.exists)
        holder = f"process {first.id} on {socket.gethostname()}"
        # A process that is stopped is not dead.
        for number in (signal.SIGSTOP, signal.SIGCONT):
            first.send(number)
            with run(resume_words(run_dir), tmp_path / "second.txt") as second:
                assert second.wait() == 2, second.printed()
            assert holder in " ".join(second.printed().split())
        with pytest.raises(CheckpointError, match=holder):
            headstart.finetune(run=run_dir, resume=True)
        goes_on.touch()
        assert first.wait() == 0, first.printed()
    assert bits_of(run_dir) == whole


def test_the_lock_of_a_dead_process_is_taken_over_at_once(
    short: Settings, whole: dict[str, Any], tmp_path: Path
) -> None:
    """Also while a process lives that the dead one has forked, such as a worker."""
    run_dir, there, never = tmp_path / "run", tmp_path / "there", tmp_path / "never"

    def fork_and_wait() -> None:
        if os.fork() == 0:
            wait_for(never)
            os._exit(0)
        there.touch()
        wait_for(never)

    with run(train_words(short, run_dir), tmp_path / "first.txt", in_step(run_dir, fork_and_wait)) as first:
        first.wait_until(there.exists)
        first.send(signal.SIGKILL)
        first.wait()
    assert f"process {first.id} " in (run_dir / LOCK_FILE).read_text(encoding="utf-8")
    with run(resume_words(run_dir), tmp_path / "second.txt") as second:
        assert second.wait() == 0, second.printed()
    never.touch()  # ends the worker
    assert bits_of(run_dir) == whole


@pytest.mark.parametrize("ends", [False, True])
def test_who_prepared_a_new_run_before_another_started_it_is_refused(
    ends: bool, short: Settings, whole: dict[str, Any], tmp_path: Path
) -> None:
    """The folder was free when it was looked at, and is not when training begins."""
    run_dir = tmp_path / "run"
    late = start(short, run_dir)
    early = start(short, run_dir)
    records = early.train()
    with contextlib.closing(records):
        next(records)
        if ends:
            for _ in records:
                pass
            early.finish()
        with pytest.raises(CheckpointError):
            next(late.train())
        if not ends:
            for _ in records:
                pass
            early.finish()
    assert bits_of(run_dir) == whole
