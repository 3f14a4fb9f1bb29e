"""`headstart evaluate`, `headstart runs` and `headstart show`.

Layer 6.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from headstart.addresses import mask
from headstart.cli.commands import SHOW
from headstart.errors import CheckpointError, RecipeError, nearest_name, suggest
from headstart.runlog import ENVIRONMENT_FILE, RECIPE_FILE, TASK_FILE, TUNING_FILE

__all__ = ["find_run", "page_name", "read_settings", "run_evaluate", "run_runs", "run_show"]


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


def read_settings(settings: Sequence[str] | None, *, on: str = "a run that is finished") -> dict[str, Any]:
    """Take the options of reading from `--set data.KEY=VALUE`.

    Args:
        settings: texts.
        on: what any other setting has no effect on.

    Raises:
        RecipeError: another setting is named.
    """
    from headstart.read_options import READ_OPTIONS
    from headstart.recipe import build_recipe

    known = [f"data.{name}" for name in READ_OPTIONS]
    for setting in settings or []:
        key = setting.partition("=")[0].strip()
        if key not in known:
            raise RecipeError(
                f"--set {key}: has no effect on {on}.",
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
    """Show one run, a study of several, a search, or the data of a source."""
    from headstart.display.runs import show_run
    from headstart.display.studies import show_study
    from headstart.study import Study, is_study

    run_dir = _run_of(arguments.source)
    if run_dir is None:
        return _show_source(arguments)
    given = [option.name for option in SHOW.options if getattr(arguments, option.attribute) not in (None, False, [])]
    given = [name for name in given if name != "--traceback"]
    is_search = (run_dir / TUNING_FILE).exists()
    if given:
        kind = "search" if is_search else "study" if is_study(run_dir) else "run"
        raise RecipeError(
            f"{' and '.join(given)} {'has' if len(given) == 1 else 'have'} no effect: {run_dir} is a {kind}.",
            "a source of rows, with these options.",
            "Leave the options out, or name the file or folder that the run was trained on.",
        )
    if is_search:
        from headstart.tuning import Tuning
        from headstart.tuning_search import show_found

        show_found(Tuning(run_dir))
        return 0
    if not is_study(run_dir):
        show_run(run_dir)
        return 0
    study = Study(run_dir)
    if not study.is_finished:
        raise CheckpointError(
            f"{run_dir}: {len(study.runs)} of its {len(study.plan)} runs are finished.",
            "a study whose runs are all finished.",
            f"Go on with it: headstart train --resume --run {run_dir}; or show one of its runs.",
        )
    show_study(study.scores, study_dir=run_dir)
    return 0


def _run_of(name: str) -> Path | None:
    """Find the run that a name means; None where it means a source.

    Raises:
        CheckpointError: it is the name of neither, or the folder holds runs and is none.
    """
    path, named = Path(name).expanduser(), Path("runs") / name
    if (path / RECIPE_FILE).exists():
        return path
    is_word = re.fullmatch(r"[^/\\:\[\]]+", name) is not None
    if is_word and (named / RECIPE_FILE).exists():
        if path.exists():
            print(f"{named} is shown. The rows of {name}: headstart show ./{shlex.quote(name)}", file=sys.stderr)
        return named
    if is_word and not path.exists():
        runs = [recipe.parent.name for recipe in Path("runs").glob(f"*/{RECIPE_FILE}")]
        here = [entry.name for entry in Path().iterdir() if not entry.name.startswith(".")]
        near = nearest_name(name, sorted({*runs, *here}))
        raise CheckpointError(
            f"{name}: no run of this name, and no file or folder.",
            "a run's folder, or its name in runs/; or rows: a file, a folder, hub:NAME.",
            f'Did you mean "{near}"?' if near else "Check the name; headstart runs lists the runs.",
        )
    if all((path / file).exists() for file in (TASK_FILE, ENVIRONMENT_FILE)):
        return path  # a training was killed while it wrote its first files: the page of a run says what is not there
    if path.is_dir() and any(path.glob(f"*/{RECIPE_FILE}")):
        raise CheckpointError(
            f"{path}: this folder holds runs.",
            "a run, or a source of rows.",
            f"List them: headstart runs {shlex.quote(name)}",
        )
    return None


def _show_source(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from headstart.describing import describe_source
    from headstart.display.source_page import check_page_path
    from headstart.display.status import Status

    page = Path(arguments.html).expanduser() if arguments.html else None
    if page is not None:
        check_page_path(page)
    with Status(Console(stderr=True, quiet=not sys.stderr.isatty())) as status:
        described = describe_source(
            arguments.source,
            validation=arguments.validation,
            test=arguments.test,
            text=arguments.text,
            pair=arguments.pair,
            label=arguments.label,
            model=arguments.model,
            examples=3 if arguments.examples is None else arguments.examples,
            seed=arguments.seed or 0,
            reading=read_settings(arguments.set, on="a page about data"),
            progress=status.say,
        )
    if arguments.html is None:
        described.show()
        return 0
    print(f"Written: {described.write_html(page or Path(page_name(described.name)))}")
    return 0


def page_name(source: str) -> str:
    """Name the page of a source after it.

    Example:
        >>> page_name("glue/mrpc")
        'glue-mrpc.html'
    """
    name = re.sub(r"[^\w.-]+", "-", source).strip(".-")
    return f"{name or 'data'}.html"
