"""`headstart train` and `headstart demo`: prepare, show the plan, train, show the result.

Layer 6.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from typing import TYPE_CHECKING, Any, Final

from headstart.cli.commands import DEMO, TRAIN, settings_of
from headstart.errors import RecipeError
from headstart.interruption import Stopped

if TYPE_CHECKING:
    from rich.console import Console

    from headstart.api import Run

__all__ = ["goes_on", "run_demo", "run_train"]

DEMO_SETTINGS: Final = {"data.limit": 4000, "train.epochs": 1}
DEMO_EXAMPLES = 3


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
    if arguments.allow and not arguments.resume:
        raise RecipeError("--allow has no effect without --resume.", "a run that goes on.", "Leave --allow out.")
    if _is_study(arguments):
        return _run_study(console, arguments)
    result = _train(
        console,
        source=arguments.source,
        recipe_file=arguments.recipe,
        settings=arguments.set,
        values=settings_of(TRAIN, arguments),
        resume=arguments.resume,
        allow=arguments.allow,
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


def _is_study(arguments: argparse.Namespace) -> bool:
    """Say whether several runs are asked for, or a folder of several goes on."""
    if arguments.seeds is not None or arguments.folds is not None:
        return True
    if arguments.keep_models is not None:
        raise RecipeError("--keep-models has no effect with one run.", "--seeds N.", "Leave --keep-models out.")
    if not arguments.resume or arguments.run is None:
        return False
    from headstart.study import is_study

    return is_study(arguments.run)


def _run_study(console: Console, arguments: argparse.Namespace) -> int:
    """Train several runs of one plan."""
    from headstart.display.plan import show_plan
    from headstart.display.status import Status
    from headstart.display.studies import show_study
    from headstart.study_training import prepare_study, train_study

    if arguments.allow:
        raise RecipeError("--allow has no effect with several runs.", "a single run.", "Resume that run by itself.")
    with Status(console) as status:
        status.say("reading")
        training = prepare_study(
            arguments.source,
            seeds=arguments.seeds,
            folds=arguments.folds,
            keep_models=arguments.keep_models or "all",
            recipe_file=arguments.recipe,
            settings=arguments.set,
            values=settings_of(TRAIN, arguments),
            resume=arguments.resume,
            debug=arguments.debug,
            progress=status.say,
        )
    if training.summary is not None and not console.quiet:
        show_plan(training.summary, console)
        console.print(f" {training.num_runs} runs of this plan, one after the other: {training.names}", markup=False)
        console.print()
    wants_answer = not (arguments.yes or arguments.quiet or arguments.json or arguments.resume)
    if wants_answer and sys.stdin.isatty() and sys.stdout.isatty() and not goes_on(console):
        return 0
    try:
        study = train_study(training, console, ends_process=True)
    except Stopped as stopped:
        study_dir = shlex.quote(str(training.study_dir))
        print(f"Stopped after saving. Go on with:\n  headstart train --resume --run {study_dir}", file=sys.stderr)
        return 128 + stopped.number
    if arguments.json:
        print(json.dumps({"study_dir": str(study.study_dir), "scores": study.scores}))
    else:
        show_study(study.scores, study_dir=study.study_dir)
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
        The finished run and the seconds of training; or an exit code, where it did not come to an end, or where this
        process is not the one that shows it.
    """
    from headstart.api import RunIsFinished, load, prepare, train_watched
    from headstart.display.plan import show_plan
    from headstart.display.status import Status
    from headstart.training.device import is_joined, own_rank

    is_first = own_rank() == 0  # the others say nothing
    console.quiet = console.quiet or not is_first
    try:
        with Status(console) as status:
            status.say("reading")
            preparation = prepare(source, values=values, progress=status.say, **given)
    except RunIsFinished as finished:
        console.print(f" {finished}", markup=False, highlight=False, soft_wrap=True)
        return (load(finished.run_dir), finished.seconds) if is_first else 0
    if not console.quiet:
        show_plan(preparation.summary, console)
    if ask and not is_joined() and sys.stdin.isatty() and sys.stdout.isatty() and not goes_on(console):
        return 0
    try:
        remarks: list[str] = []
        run, stop = train_watched(preparation, console, ends_process=True, tell=remarks.append)
        if run is None:
            return 0
        for remark in remarks:
            print(remark, file=sys.stderr)
    except Stopped as stopped:
        if is_first:
            run_dir = shlex.quote(str(preparation.run_dir))
            print(f"Stopped after saving. Go on with:\n  headstart train --resume --run {run_dir}", file=sys.stderr)
        return 128 + stopped.number
    return (run, stop.seconds if stop is not None else 0.0) if is_first else 0


def goes_on(console: Console) -> bool:
    """Ask at the terminal whether to begin."""
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
            Example(text, str(said.prediction), said.probability or 0.0, str(label))
            for text, said, label in zip(texts, run.predict(texts), labels, strict=True)
        ]
    )
