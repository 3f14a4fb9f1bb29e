"""`headstart train` and `headstart demo`: prepare, show the plan, train, show the result.

Layer 6.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from headstart.cli.commands import DEMO, TRAIN, settings_of
from headstart.errors import RecipeError

if TYPE_CHECKING:
    from rich.console import Console

    from headstart.api import Preparation, Run

__all__ = ["run_demo", "run_train"]

DEMO_SETTINGS: Final = {"data.limit": 4000, "train.epochs": 1, "optim.learning_rate": 2e-4}
DEMO_EXAMPLES = 3


class _StoppedAfterTraining(KeyboardInterrupt):
    """A signal came while the scores were computed; the training is whole and saved."""


class _Interruption:
    """What a signal asked for: the first one to finish the step and save, the second one to leave at once.

    Args:
        requests: gets the word for the loop.
        console: where the progress is shown.

    Attributes:
        signal: number of the first signal; None where none came.
        is_trained: nothing is left to save, so a signal need not wait for the end of a step.
    """

    def __init__(self, requests: set[str], console: Console) -> None:
        self.signal: int | None = None
        self.is_trained = False
        self._requests = requests
        self._console = console
        self._draws = console.is_interactive and not console.quiet

    def __call__(self, number: int, frame: FrameType | None) -> None:
        # Written by the system call: rich or a buffer may be in the middle of a write of their own.
        if self.signal is not None:
            if self._draws:
                os.write(self._file, b"\x1b[?25h\n")  # the bar has hidden the cursor
            os._exit(128 + number)
        self.signal = number
        if self.is_trained:
            raise _StoppedAfterTraining
        self._requests.add("stop")
        text = "Finishing the step and saving; once more to leave at once."
        if self._draws:
            # In the place of the last line of numbers, so that the bar finds its lines where it left them.
            os.write(self._file, f"\r\x1b[2K {text[: self._console.width - 2]}".encode())
        else:
            os.write(2, f"\n{text}\n".encode())

    @property
    def _file(self) -> int:
        return 2 if self._console.stderr else 1


@contextmanager
def _signals(requests: set[str], console: Console) -> Iterator[_Interruption]:
    interruption = _Interruption(requests, console)
    before = {number: signal.signal(number, interruption) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_train(arguments: argparse.Namespace) -> int:
    """Train on the user's rows."""
    from rich.console import Console

    console = Console(stderr=arguments.json, quiet=arguments.quiet or False)
    if arguments.resume and arguments.debug:
        raise RecipeError(
            "--debug and --resume are both given.",
            "one of them.",
            "A run that was started with --debug resumes as one.",
        )
    result = _train(
        console,
        source=arguments.source,
        recipe_file=arguments.recipe,
        settings=arguments.set,
        values=settings_of(TRAIN, arguments),
        resume=arguments.resume,
        debug=arguments.debug,
        ask=not (arguments.yes or arguments.quiet or arguments.json),
    )
    if isinstance(result, int):
        return result
    run, seconds = result
    if arguments.json:
        print(json.dumps({"run_dir": str(run.run_dir), "seconds": round(seconds, 3), "scores": run.scores}))
        return 0
    _show_result(run, seconds)
    return 0


def run_demo(arguments: argparse.Namespace) -> int:
    """Train on the embedded rows, and predict three of them."""
    from rich.console import Console

    from headstart.data.sources import DEMO_SOURCE, read_source

    console = Console(quiet=arguments.quiet)
    values = {**DEMO_SETTINGS, **settings_of(DEMO, arguments)}
    result = _train(console, source=DEMO_SOURCE, values=values, ask=False)
    if isinstance(result, int):
        return result
    run, seconds = result
    _show_result(run, seconds)
    _show_examples(run, read_source(DEMO_SOURCE).splits["test"])
    return 0


def _train(
    console: Console, *, source: Any, values: dict[str, Any], ask: bool, **given: Any
) -> tuple[Run, float] | int:
    """Prepare, show the plan and train.

    Returns:
        The finished run and the seconds of training; or an exit code, where it did not come to an end.
    """
    from headstart.api import prepare
    from headstart.display.plan import show_plan
    from headstart.display.progress import Progress
    from headstart.display.status import Status
    from headstart.runlog import StopRecord

    with Status(console) as status:
        status.say("reading")
        preparation = prepare(source, values=values, progress=status.say, **given)
    if not console.quiet:
        show_plan(preparation.summary, console)
    if ask and sys.stdin.isatty() and sys.stdout.isatty() and not _goes_on(console):
        return 0
    stop: StopRecord | None = None
    with _signals(preparation.requests, console) as interruption:
        with Progress(preparation.summary.total_steps, console=console) as progress:
            for record in preparation.train():
                progress.update(record)
                if isinstance(record, StopRecord):
                    stop = record
        try:
            interruption.is_trained = True
            # Also after the last step: whoever asked to stop does not want to wait for the scores.
            if interruption.signal is None:
                with Status(console) as status:
                    run = preparation.finish(status.say)
        except _StoppedAfterTraining:
            console.print()
        if interruption.signal is not None:
            return _stopped(preparation, interruption.signal)
    return run, stop.seconds if stop is not None else 0.0


def _goes_on(console: Console) -> bool:
    from rich.text import Text

    try:
        answer = input(" Go on? [Y/n] ").strip().lower()
    except EOFError:
        answer = "n"
    console.print()
    goes_on = answer in ("", "y", "yes")
    if not goes_on:
        console.print(Text(" Nothing was written."))
    return goes_on


def _stopped(preparation: Preparation, number: int) -> int:
    run_dir = shlex.quote(str(preparation.run_dir))
    print(f"Stopped after saving. Go on with:\n  headstart train --resume --run {run_dir}", file=sys.stderr)
    return 128 + number


def _show_result(run: Run, seconds: float) -> None:
    from headstart.display.results import show_result

    show_result(
        run.scores,
        run_dir=run.run_dir,
        seconds=seconds,
        confidence=run.recipe.evaluate.confidence,
        is_pair=run.task.pair is not None,
    )


def _show_examples(run: Run, test: Any) -> None:
    """Show what the model says of three test rows, spread over the split."""
    from headstart.display.predictions import Example, show_examples

    rows = test.select([index * len(test) // DEMO_EXAMPLES for index in range(DEMO_EXAMPLES)])
    names = test.features["label"]
    labels = [names.int2str(label) if hasattr(names, "int2str") else label for label in rows["label"]]
    texts = list(rows["text"])
    show_examples(
        [
            Example(text, str(said.prediction), said.probability, str(label))
            for text, said, label in zip(texts, run.predict(texts), labels, strict=True)
        ]
    )
