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


class _Interruption:
    """What a signal asked for: the first one to finish the step and save, the second one to leave at once."""

    def __init__(self, requests: set[str]) -> None:
        self._requests = requests
        self.signal: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            os._exit(128 + number)
        self.signal = number
        self._requests.add("stop")
        text = "\nFinishing the step and saving; once more to leave at once.\n"
        os.write(sys.stderr.fileno(), text.encode())


@contextmanager
def _signals(requests: set[str]) -> Iterator[_Interruption]:
    interruption = _Interruption(requests)
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
        preparation = prepare(source, values=values, progress=status.tokenising, **given)
    if not console.quiet:
        show_plan(preparation.summary, console)
    if ask and sys.stdin.isatty() and sys.stdout.isatty() and not _goes_on(console):
        return 0
    stop: StopRecord | None = None
    with _signals(preparation.requests) as interruption:
        with Progress(preparation.summary.total_steps, console=console) as progress:
            for record in preparation.train():
                progress.update(record)
                if isinstance(record, StopRecord):
                    stop = record
        if interruption.signal is not None and stop is not None and stop.reason == "requested":
            return _stopped(preparation, interruption.signal)
    try:
        with Status(console) as status:
            run = preparation.finish(status.say)
    except KeyboardInterrupt:
        # Training is over and saved; only the scores are missing.
        return _stopped(preparation, signal.SIGINT)
    return run, stop.seconds if stop is not None else 0.0


def _goes_on(console: Console) -> bool:
    try:
        answer = input(" Go on? [Y/n] ").strip().lower()
    except EOFError:
        answer = "n"
    console.print()
    return answer in ("", "y", "yes")


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
    from rich.console import Console
    from rich.text import Text

    rows = test.select([index * len(test) // DEMO_EXAMPLES for index in range(DEMO_EXAMPLES)])
    names = test.features["label"]
    labels = [names.int2str(label) if hasattr(names, "int2str") else label for label in rows["label"]]
    console = Console()
    console.print(Text(" Three rows of the test split", style="bold"))
    for text, label, said in zip(rows["text"], labels, run.predict(list(rows["text"])), strict=True):
        shown = text if len(text) <= 70 else f"{text[:67]}..."
        console.print(Text(f"   {shown}"))
        console.print(Text(f"     {said.prediction} ({said.probability:.0%}), the label says {label}", style="dim"))
    console.print()
    console.print(Text(" With your own rows: headstart train YOUR_FILE.csv"))
