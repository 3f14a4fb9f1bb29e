"""`headstart evaluate`, `headstart runs` and `headstart show`.

Layer 6.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from headstart.addresses import mask
from headstart.errors import CheckpointError, RecipeError, suggest
from headstart.runlog import RECIPE_FILE

__all__ = ["find_run", "read_settings", "run_evaluate", "run_runs", "run_show"]


def find_run(name: str) -> Path:
    """Find a run by its path, or by its name in `runs/`.

    Raises:
        CheckpointError: neither is there; with the nearest name in `runs/`.
    """
    path, named = Path(name).expanduser(), Path("runs") / name
    if (path / RECIPE_FILE).exists():
        return path
    if (named / RECIPE_FILE).exists():
        return named
    if len(path.parts) == 1 and not path.exists() and not named.exists():
        runs = sorted(recipe.parent.name for recipe in Path("runs").glob(f"*/{RECIPE_FILE}"))
        if runs:
            raise CheckpointError(
                f"{name}: no run of this name, neither here nor in runs/.",
                "a folder that a training left.",
                suggest(name, runs),
            )
    return path


def read_settings(settings: Sequence[str] | None) -> dict[str, Any]:
    """Take the options of reading from `--set data.KEY=VALUE`.

    Raises:
        RecipeError: another setting is named; it would have no effect on a finished run.
    """
    from headstart.read_options import READ_OPTIONS
    from headstart.recipe import build_recipe

    known = [f"data.{name}" for name in READ_OPTIONS]
    for setting in settings or []:
        key = setting.partition("=")[0].strip()
        if key not in known:
            raise RecipeError(
                f"--set {key}: has no effect on a run that is finished.",
                "an option of how the source is read.",
                suggest(key, known),
            )
    return build_recipe(settings=settings or []).data.read_options if settings else {}


def run_evaluate(arguments: argparse.Namespace) -> int:
    """Score a run on labelled rows."""
    from rich.console import Console

    from headstart.api import load
    from headstart.display.scores import show_scores
    from headstart.display.status import Status

    run = load(find_run(arguments.run))
    remarks: list[str] = []
    with Status(Console(stderr=True, quiet=not sys.stderr.isatty())) as status:
        scores = run.evaluate(
            arguments.source,
            text=arguments.text,
            pair=arguments.pair,
            label=arguments.label,
            tell=remarks.append,
            progress=status.say,
            reading=read_settings(arguments.set),
        )
    for remark in remarks:
        print(remark, file=sys.stderr)
    if arguments.json:
        print(json.dumps({"run_dir": str(run.run_dir), "source": mask(arguments.source), "scores": scores}))
    else:
        show_scores(scores, f"{run.run_dir.name} on {mask(arguments.source)}")
    return 0


def run_runs(arguments: argparse.Namespace) -> int:
    """List runs, best first."""
    from headstart.api import list_runs
    from headstart.display.runs import show_runs

    root = Path(arguments.dir or "runs")
    if not root.is_dir() and arguments.dir is not None:
        raise CheckpointError(
            f"{root}: no such folder.",
            "a folder that holds runs.",
            "Start one: headstart train SOURCE (or headstart demo).",
        )
    show_runs(list_runs(root))
    return 0


def run_show(arguments: argparse.Namespace) -> int:
    """Show one run, or a study of several."""
    from headstart.display.runs import show_run
    from headstart.display.studies import show_study
    from headstart.study import Study, is_study

    found = find_run(arguments.run)
    if not is_study(found):
        show_run(found)
        return 0
    study = Study(found)
    if not study.is_finished:
        raise CheckpointError(
            f"{found}: {len(study.runs)} of its {len(study.plan)} runs are finished.",
            "a study whose runs are all finished.",
            f"Go on with it: headstart train --resume --run {found}; or show one of its runs.",
        )
    show_study(study.scores, study_dir=found)
    return 0
