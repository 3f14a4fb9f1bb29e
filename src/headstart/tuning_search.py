"""Carry a search out: `tune()`, and what the command takes.

Layer 5; may import everything but the doors.

    prepare_tuning -> Tuning -> a trial after the other -> the best one scored -> table and picture
"""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from headstart.api import named_settings
from headstart.display.layout import FAINT, HEADING, make_console, plain
from headstart.display.plan import show_plan
from headstart.display.progress import Progress
from headstart.display.scores import format_value
from headstart.display.status import Status
from headstart.display.tuning import draw_trials, show_tuning
from headstart.errors import RecipeError
from headstart.interruption import Interruption, Stopped, end_as_signalled
from headstart.metrics import higher_is_better
from headstart.preparation import Plan, prepare_plan, take_folder_of_runs
from headstart.reading import name_splits
from headstart.recipe import build_recipe, read_recipe_file
from headstart.records import EvaluationRecord, Report, StopRecord
from headstart.run_files import write_text
from headstart.runlog import new_run_dir
from headstart.search_space import SearchSetting, default_space, setting_from
from headstart.training.device import is_joined
from headstart.tuning import BEST_RECIPE_FILE, Tuning, TuningTrial, import_optuna, start_tuning

__all__ = ["DEFAULT_TRIALS", "PlannedTuning", "prepare_tuning", "run_tuning", "show_found", "take_part", "tune"]

DEFAULT_TRIALS = 20
PICTURE_FILE = "tuning.svg"


@dataclass(frozen=True)
class PlannedTuning:
    """A search of which nothing is written yet.

    Args:
        plan: with the recipe's own values, which the first trial has.
        space: what is tried.
        num_trials: how many trials there are to be.
        tuning_dir: the folder; None makes a new one beside the runs.
        workers: processes that share the search.
        debug: a handful of rows.
    """

    plan: Plan
    space: list[SearchSetting]
    num_trials: int
    tuning_dir: Path | None
    workers: int
    debug: bool

    def show(self, console: Console) -> None:
        """Show the plan, and what is tried."""
        show_plan(self.plan.summary, console)
        console.print(Text(f" {self.num_trials} trials of this plan with other values of", style=HEADING))
        for setting in self.space:
            console.print(plain(f"   {setting}"))
        console.print()

    def start(self) -> Tuning:
        """Make the folder."""
        self.plan.fast.undo()
        name = f"{self.plan.run_dir.name.rpartition('-')[0]}-tune"
        tuning_dir = self.tuning_dir or new_run_dir(self.plan.run_dir.parent, name)
        threads = max(1, self.plan.device.threads // self.workers)
        values = {"train.threads": threads} if self.workers > 1 else {}
        return start_tuning(tuning_dir, self.plan, self.space, self.num_trials, values, debug=self.debug)


def prepare_tuning(
    source: Any = None,
    *,
    trials: int = DEFAULT_TRIALS,
    space: Sequence[SearchSetting] = (),
    recipe_file: str | Path | None = None,
    settings: Sequence[str] = (),
    values: Mapping[str, Any] | None = None,
    workers: int = 1,
    debug: bool = False,
    progress: Report | None = None,
) -> PlannedTuning:
    """Read and check everything that a search needs; nothing is written.

    Args:
        source: training source; None takes it from the recipe.
        trials: how many.
        space: what is tried; empty takes `default_space`, without what is set.
        recipe_file: a YAML recipe.
        settings: texts such as "train.patience=2".
        values: "section.key" to value; None values are left out.
        workers: processes that share the search, and so the threads of the machine.
        debug: a handful of rows.
        progress: gets what is done now, and how many of the rows are done.

    Raises:
        HeadstartError: of the kind that fits.
    """
    import_optuna()
    if trials < 2:
        raise RecipeError(f"--trials is {trials}.", "2 or more.", "Train once with: headstart train")
    if workers < 1:
        raise RecipeError(f"--workers is {workers}.", "1 or more.", "Leave it out for one process.")
    if is_joined():
        raise RecipeError(
            "A search cannot be made by processes that were started from outside (torchrun).",
            "one process, or --workers N.",
            "Start it without torchrun.",
        )
    values = {key: value for key, value in (values or {}).items() if value is not None}
    given = [*values, *(text.partition("=")[0].strip() for text in settings)]
    for setting in space:
        if setting.key in given:
            raise RecipeError(
                f"{setting.key} is set to one value, and searched.",
                "one of both.",
                f"Leave one of them out: {setting}.",
            )
    recipe_path = Path(recipe_file) if recipe_file is not None else None
    recipe = build_recipe(recipe_path, settings, values)
    tuning_dir, settings, own = take_folder_of_runs(recipe, settings, values, what="search", command="tune")
    plan = prepare_plan(
        source,
        recipe_file=recipe_path,
        settings=settings,
        values={**own, **({"output.run": str(tuning_dir / "trial-0")} if tuning_dir is not None else {})},
        debug=debug,
        progress=progress,
    )
    fixed = list(given)
    if recipe_path is not None:
        sections = read_recipe_file(recipe_path)[0]
        fixed += [f"{section}.{key}" for section, fields in sections.items() for key in fields]
    chosen = list(space) or default_space(plan.recipe, fixed)
    if not chosen:
        raise RecipeError(
            "Everything that a search tries by itself is set to one value.",
            "something to search.",
            "Name it with --search SECTION.KEY=LOW..HIGH, or leave a setting out.",
        )
    return PlannedTuning(plan, chosen, trials, tuning_dir, workers, debug)


def run_tuning(
    tuning: Tuning,
    console: Console,
    *,
    source: Any = None,
    workers: int = 1,
    ends_process: bool,
) -> None:
    """Make trials until there are no more, then score the best one and write table and picture.

    Args:
        tuning: the search; other processes may take part.
        console: where the progress is shown.
        source: of the training rows where they are in memory.
        workers: processes in all; the others are started here.
        ends_process: see `Interruption`.

    Raises:
        Stopped: a signal has come, and everything is saved.
    """
    helpers = [_start_helper(tuning) for _ in range(workers - 1)]
    try:
        _run_trials(tuning, console, source, ends_process=ends_process)
    finally:
        for helper in helpers:
            if helper.poll() is None:
                helper.terminate()  # it saves, and leaves its trial to the next start
        for helper in helpers:
            helper.wait()
    with Status(console) as status:
        tuning.finish(source, status.say)
    table = tuning.trials
    best = tuning.best_trial.number
    picture = draw_trials(table, score_name=tuning.score_name, best=best, importances=tuning.importances())
    write_text(tuning.tuning_dir / PICTURE_FILE, picture)


def _run_trials(tuning: Tuning, console: Console, source: Any, *, ends_process: bool) -> None:
    while True:
        with Status(console) as status:
            trial = tuning.next_trial(source, status.say)
        if trial is None:
            return
        try:
            _run_trial(trial, tuning, console, ends_process=ends_process)
        finally:
            trial.close()


def take_part(tuning_dir: str) -> None:
    """Make trials of a search that another process has begun, and leave its end to that one."""
    with contextlib.suppress(Stopped):
        _run_trials(Tuning(tuning_dir), Console(quiet=True), None, ends_process=True)


def _start_helper(tuning: Tuning) -> subprocess.Popen[bytes]:
    code = "import sys; from headstart.tuning_search import take_part; take_part(sys.argv[1])"
    return subprocess.Popen([sys.executable, "-c", code, str(tuning.tuning_dir)], stdin=subprocess.DEVNULL)


def _run_trial(trial: TuningTrial, tuning: Tuning, console: Console, *, ends_process: bool) -> None:
    values = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in trial.values.items())
    console.print(Text.assemble((f" trial {trial.number}", HEADING), "   ", plain(values, FAINT)))
    score, stop = None, None
    with Interruption(trial.requests, console, ends_process=ends_process) as interruption:
        with Progress(trial.plan.total_steps, console) as bars, closing(trial.train()) as records:
            for record in records:
                bars.update(record)
                if isinstance(record, EvaluationRecord):
                    score = record.scores[tuning.score_name]
                elif isinstance(record, StopRecord):
                    stop = record
        if not trial.is_pruned:
            interruption.saved(asked_elsewhere=stop is not None and stop.reason == "requested")
    ending = " (pruned: the median of the others was better)" if trial.is_pruned else ""
    if score is not None:
        console.print(plain(f"   {tuning.score_name} {format_value(score)}{ending}", FAINT))


def show_found(tuning: Tuning, console: Console | None = None) -> None:
    """Show what a search has found so far."""
    from headstart.run_files import read_json
    from headstart.runlog import DATA_FILE

    best = tuning.best_trial.number
    data = read_json(tuning.folder_of(best) / DATA_FILE)
    recipe = shlex.quote(str(tuning.tuning_dir / BEST_RECIPE_FILE))
    source = "SOURCE " if tuning.recipe.data.train is None else ""
    show_tuning(
        tuning.trials,
        score_name=tuning.score_name,
        higher_is_better=higher_is_better(tuning.score_name),
        importances=tuning.importances(),
        best=best,
        tuning_dir=tuning.tuning_dir,
        num_validation_rows=data["splits"]["validation"]["rows"],
        next_command=f"headstart train {source}--recipe {recipe} --seeds 5",
        console=console,
    )


def tune(
    source: Any = None,
    *,
    trials: int = DEFAULT_TRIALS,
    space: Mapping[str, Any] | None = None,
    workers: int = 1,
    test: Any = None,
    validation: Any = None,
    recipe: str | Path | None = None,
    settings: Sequence[str] = (),
    resume: bool = False,
    debug: bool = False,
    progress: bool = True,
    **named: Any,
) -> Tuning:
    """Search settings with Optuna, by a score of the validation rows, and score the best trial like any run.

    The first trial has the recipe's own values. Trials whose score is below the median of the others at the same share
    of their training are pruned. Ctrl-C saves; `tune(run=..., resume=True)` goes on. Another process that is started so
    on the same folder takes part.

    Args:
        source: as for `finetune()`.
        trials: how many.
        space: "section.key" to `(low, high)` or a list of values; None searches learning rate, batch size, epochs and
            warm-up around their defaults, without those that are set.
        workers: processes that share the search; the source must then be a file, folder or hub name.
        test: source of the test rows, which only the best trial is scored on.
        validation: source of the validation rows; None cuts them from train.
        recipe: a YAML recipe; the other arguments win over it.
        settings: any other setting, as "section.key=value".
        resume: go on with the search in `run`.
        debug: a handful of rows.
        progress: show plan, progress and result.
        **named: the other arguments of `finetune()`: text, pair, label, task, model, run, epochs, batch_size,
            learning_rate, max_length, seed, limit, processes.

    Returns:
        The search: `tuning.best` is a run, `tuning.trials` the table, `tuning.importances()` what mattered.

    Raises:
        HeadstartError: of the kind that fits.
        KeyboardInterrupt: stopped by Ctrl-C, after saving.

    Example:
        tuning = headstart.tune("reviews.csv", trials=10, space={"optim.learning_rate": (2e-5, 1e-3)})
        tuning.best.predict(["loved it"])

    Source: Akiba et al. 2019, Optuna; Bergstra et al. 2011, Algorithms for Hyper-Parameter Optimization (TPE).
    """
    source, in_files = name_splits(source, validation=validation, test=test)
    in_memory = None if isinstance(source, str | Path | None) else source
    if workers > 1 and in_memory is not None:
        raise RecipeError(
            "The rows are in memory, where other processes cannot read them.",
            "a source that every process can open, with workers.",
            "Write them to a file (CSV, JSONL, Parquet), or leave workers out.",
        )
    console = make_console(None)
    console.quiet = not progress
    values = {**in_files, **named_settings(**named)}
    if resume:
        tuning = Tuning(str(values.get("output.run", "")))
    else:
        with Status(console) as status:
            planned = prepare_tuning(
                source,
                trials=trials,
                space=[setting_from(key, tried) for key, tried in (space or {}).items()],
                recipe_file=recipe,
                settings=settings,
                values=values,
                workers=workers,
                debug=debug,
                progress=status.say,
            )
        planned.show(console)
        tuning = planned.start()
    try:
        run_tuning(tuning, console, source=in_memory, workers=workers, ends_process=False)
    except Stopped as stopped:
        rows = "" if in_memory is None else "..., "
        call = f"headstart.tune({rows}run={str(tuning.tuning_dir)!r}, resume=True)"
        end_as_signalled(stopped.number, f"Stopped after saving. Go on:\n  {call}")
    show_found(tuning, console)
    return tuning
