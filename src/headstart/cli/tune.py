"""`headstart tune`: search for better settings, and show what was found.

Layer 6.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys

from headstart.cli.commands import TUNE, settings_of
from headstart.errors import RecipeError
from headstart.interruption import Stopped

__all__ = ["run_tune"]


def run_tune(arguments: argparse.Namespace) -> int:
    """Search, or go on with a search."""
    from rich.console import Console

    from headstart.cli.train import goes_on
    from headstart.display.status import Status
    from headstart.search_space import read_setting
    from headstart.tuning import Tuning
    from headstart.tuning_search import DEFAULT_TRIALS, prepare_tuning, run_tuning, show_found

    console = Console(stderr=arguments.json, quiet=arguments.quiet or False, highlight=False, markup=False)
    workers = 1 if arguments.workers is None else arguments.workers
    values = settings_of(TUNE, arguments)
    if arguments.resume:
        _refuse_beside_resume(arguments, values)
        tuning = Tuning(str(values.get("output.run", "")))
    else:
        with Status(console) as status:
            status.say("reading")
            planned = prepare_tuning(
                arguments.source,
                trials=DEFAULT_TRIALS if arguments.trials is None else arguments.trials,
                space=[read_setting(text) for text in arguments.search],
                recipe_file=arguments.recipe,
                settings=arguments.set,
                values=values,
                workers=workers,
                debug=arguments.debug,
                progress=status.say,
            )
        if not console.quiet:
            planned.show(console)
        wants_answer = not (arguments.yes or arguments.quiet or arguments.json)
        if wants_answer and sys.stdin.isatty() and sys.stdout.isatty() and not goes_on(console):
            return 0
        tuning = planned.start()
    try:
        run_tuning(tuning, console, workers=workers, ends_process=True)
    except Stopped as stopped:
        tuning_dir = shlex.quote(str(tuning.tuning_dir))
        print(f"Stopped after saving. Go on with:\n  headstart tune --resume --run {tuning_dir}", file=sys.stderr)
        return 128 + stopped.number
    if arguments.json:
        best = tuning.best_trial
        table = [vars(trial) for trial in tuning.trials]
        print(json.dumps({"tuning_dir": str(tuning.tuning_dir), "best": best.number, "trials": table}))
    else:
        show_found(tuning)
    return 0


def _refuse_beside_resume(arguments: argparse.Namespace, values: dict[str, object]) -> None:
    """Say what would have no effect on a search that was started with settings of its own.

    Raises:
        RecipeError: something is given beside --run, or that is not given.
    """
    given = [f"--{name}" for name in ("trials", "recipe") if getattr(arguments, name) is not None]
    given += [f"--{name}" for name in ("search", "set", "debug") if getattr(arguments, name)]
    given += [key for key in values if key != "output.run"]
    given += [arguments.source] if arguments.source is not None else []
    if given:
        raise RecipeError(
            f"A search that goes on has settings of its own; given now: {', '.join(given)}.",
            "nothing but --resume, --run and --workers.",
            "Leave them out, or start a new search without --resume.",
        )
    if "output.run" not in values:
        raise RecipeError("--resume does not say which search.", "--run DIR.", "Name the folder with --run.")
