"""headstart in Python: `finetune()`, `load()`, and the steps that the command takes one by one.

Layer 5; may import everything but the doors.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final, NoReturn

from rich.console import Console
from rich.text import Text

from headstart.display.layout import make_console
from headstart.display.plan import PlanSummary, show_plan
from headstart.display.progress import Progress
from headstart.display.results import show_result
from headstart.display.status import Status
from headstart.errors import suggest
from headstart.interruption import Interruption, Stopped, end_as_signalled
from headstart.preparation import Plan, prepare_plan
from headstart.reading import name_splits
from headstart.recipe import Recipe
from headstart.records import Record, Report, StopRecord
from headstart.results import write_results
from headstart.resumption import RunIsFinished
from headstart.run import PredictedTable, Prediction, Run, load
from headstart.run_list import RunEntry, list_runs
from headstart.training.device import own_rank
from headstart.training.launch import is_worker
from headstart.training_run import run_plan

__all__ = [
    "PredictedTable",
    "Prediction",
    "Preparation",
    "Run",
    "RunEntry",
    "RunIsFinished",
    "finetune",
    "list_runs",
    "load",
    "named_settings",
    "prepare",
    "train_watched",
]


class Preparation:
    """A training that is ready to start; nothing is written yet.

    Args:
        plan: what `prepare_plan` made.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    @property
    def summary(self) -> PlanSummary:
        """What a person reads before the first step."""
        return self._plan.summary

    @property
    def recipe(self) -> Recipe:
        """The recipe, with everything filled in that was found by looking."""
        return self._plan.recipe

    @property
    def run_dir(self) -> Path:
        """Where the run goes; settled when `train()` starts."""
        return self._plan.run_dir

    @property
    def requests(self) -> set[str]:
        """Words for the loop: "stop" (finish the step, save, end), "save", "evaluate"."""
        return self._plan.requests

    def train(self) -> Generator[Record, None, None]:
        """Train, yielding a record of every event; leaving the iteration stops without saving."""
        yield from run_plan(self._plan)

    def finish(self, progress: Report | None = None, tell: Callable[[str], None] | None = None) -> Run:
        """Save and score the model and write what a run folder holds at the end.

        Args:
            progress: gets what is done now, and how many of the rows are done.
            tell: gets what trackers say that failed since the last record; None makes it a `HeadstartWarning`.
        """
        write_results(self._plan, progress, tell)
        return Run(self._plan.run_dir)


def prepare(
    source: Any = None,
    *,
    recipe_file: str | Path | None = None,
    settings: Sequence[str] = (),
    values: Mapping[str, Any] | None = None,
    resume: bool = False,
    allow: Sequence[str] = (),
    debug: bool = False,
    progress: Report | None = None,
) -> Preparation:
    """Read, check and plan a training.

    Args:
        source: training source; None takes it from the recipe.
        recipe_file: a YAML recipe.
        settings: texts such as "train.epochs=5".
        values: "section.key" to value; None values are left out.
        resume: go on with the run in `output.run`.
        allow: what may have changed since that run was started: "data", "tokenizer", "model", "recipe", "versions".
        debug: a handful of rows and steps.
        progress: gets what is done now, and how many of the rows are done.

    Raises:
        HeadstartError: of the kind that fits; nothing was written.
        RunIsFinished: the run to resume has nothing left to do.
    """
    plan = prepare_plan(
        source,
        recipe_file=Path(recipe_file) if recipe_file is not None else None,
        settings=settings,
        values=values,
        resume=resume,
        allow=allow,
        debug=debug,
        progress=progress,
    )
    return Preparation(plan)


def finetune(
    source: Any = None,
    *,
    test: Any = None,
    validation: Any = None,
    text: str | None = None,
    pair: str | None = None,
    label: str | Sequence[str] | None = None,
    task: str | None = None,
    model: str | None = None,
    run: str | Path | None = None,
    recipe: str | Path | None = None,
    settings: Sequence[str] = (),
    epochs: float | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    max_length: int | None = None,
    seed: int | None = None,
    limit: int | str | None = None,
    processes: int | None = None,
    debug: bool = False,
    resume: bool = False,
    allow: Sequence[str] = (),
    progress: bool = True,
) -> Run:
    """Fine-tune a model on labelled texts, score it, and give the finished run.

    Ctrl-C finishes the step, saves and raises KeyboardInterrupt, which says how to go on; a second one leaves at once.
    SIGTERM does the same and then ends the program, or calls your own handler of it. Handlers are given back.

    Args:
        source: file, folder, `hub:NAME`, pandas frame, list of dicts, dict of columns or of splits, `datasets.Dataset`.
        test: source of the test rows, read once at the end.
        validation: source of the validation rows; None cuts them from train, stratified, by the seed.
        text: column of the text; None finds it by looking.
        pair: column of the second text of a pair; None finds it by looking.
        label: column of the label, or columns, one for each class or number; None finds them by looking.
        task: "sequence_classification", "multi_label_classification" or "regression"; None goes by the labels.
        model: hub name or folder; None takes the embedded default.
        run: folder of the run; None makes `runs/NAME-N`.
        recipe: a YAML recipe; the other arguments win over it.
        settings: any other setting, as "section.key=value".
        epochs: passes over the training rows.
        batch_size: rows of one forward pass.
        learning_rate: the highest of the schedule; None chooses by the width of the model and the rows of an update.
        max_length: tokens of a row at most.
        seed: decides new parameters, order and dropout.
        limit: training rows, a number or "10%".
        processes: of this machine that train together; the source must be a file, folder or hub name.
        debug: a handful of rows and steps.
        resume: go on with the run in `run`; one that is finished is given back as it is.
        allow: what may have changed since that run was started: "data", "tokenizer", "model", "recipe", "versions".
        progress: show plan, progress and result.

    Returns:
        The finished run: `run.scores`, `run.predict([...])`, `run.evaluate(source)`.

    Raises:
        HeadstartError: of the kind that fits, with what was found, expected, and to do.
        KeyboardInterrupt: stopped by Ctrl-C.
    """
    source, in_files = name_splits(source, validation=validation, test=test)
    named = named_settings(
        text=text, pair=pair, label=label, task=task, model=model, run=run, epochs=epochs, batch_size=batch_size,
        learning_rate=learning_rate, max_length=max_length, seed=seed, limit=limit, processes=processes,
    )  # fmt: skip
    given: dict[str, Any] = {
        "recipe_file": recipe,
        "settings": settings,
        "values": {**in_files, **named},
        "resume": resume,
        "allow": allow,
        "debug": debug,
    }
    console = make_console(None)
    console.quiet = not progress or own_rank() > 0
    try:
        with Status(console) as status:
            preparation = prepare(source, **given, progress=status.say)
    except RunIsFinished as done:
        console.print(Text(f" {done}"), soft_wrap=True)
        return Run(done.run_dir)
    show_plan(preparation.summary, console)
    try:
        finished, _ = train_watched(preparation, console, ends_process=False)
    except Stopped as stopped:
        _leave(preparation, stopped.number)
    assert finished is not None
    show_result(
        finished.scores,
        run_dir=finished.run_dir,
        confidence=finished.recipe.evaluate.confidence,
        is_pair=finished.task.pair is not None,
        console=console,
    )
    return finished


_SETTINGS: Final = {
    "text": "data.columns.text",
    "pair": "data.columns.pair",
    "label": "data.columns.label",
    "task": "task.name",
    "model": "model.checkpoint",
    "run": "output.run",
    "epochs": "train.epochs",
    "batch_size": "train.batch_size",
    "learning_rate": "optim.learning_rate",
    "max_length": "data.max_length",
    "seed": "train.seed",
    "limit": "data.limit",
    "processes": "train.processes",
}


def named_settings(**given: Any) -> dict[str, Any]:
    """Give the recipe's values of the arguments that `finetune()` has: "section.key" to value.

    Raises:
        TypeError: there is no such argument.

    Example:
        >>> named_settings(epochs=2, label=["a", "b"])
        {'train.epochs': 2, 'data.columns.label': ['a', 'b']}
    """
    values = {}
    for name, value in given.items():
        if name not in _SETTINGS:
            raise TypeError(f"There is no argument {name}. {suggest(name, list(_SETTINGS))}")
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        values[_SETTINGS[name]] = list(value) if isinstance(value, tuple) else value
    return values


def train_watched(
    preparation: Preparation, console: Console, *, ends_process: bool, tell: Callable[[str], None] | None = None
) -> tuple[Run | None, StopRecord | None]:
    """Train and score with a bar, or lines, and let signals stop it after a step.

    Args:
        preparation: of the training.
        console: where the progress is shown.
        ends_process: see `Interruption`.
        tell: gets what trackers said at the end; None warns.

    Returns:
        The finished run, None in a process that another one started; and the record of the end.

    Raises:
        Stopped: a signal has come, and everything is saved.
    """
    stop: StopRecord | None = None
    with Interruption(preparation.requests, console, ends_process=ends_process) as interruption:
        # Closed at once also where Ctrl-C leaves it in the middle, or its lock would live as long as a traceback.
        with Progress(preparation.summary.total_steps, console) as bars, closing(preparation.train()) as records:
            for record in records:
                bars.update(record)
                if isinstance(record, StopRecord):
                    stop = record
        # Also after the last step: whoever asked to stop does not want to wait for the scores.
        interruption.saved(asked_elsewhere=stop is not None and stop.reason == "requested")
        if is_worker():
            return None, stop  # process 0, which started this one, does the rest alone
        try:
            with Status(console) as status:
                return preparation.finish(status.say, tell), stop
        except Stopped:
            console.print()
            raise


def _leave(preparation: Preparation, number: int) -> NoReturn:
    """Say how to go on, and end as the signal would have ended the caller."""
    same_rows = " with the same rows" if preparation.recipe.data.train is None else ""
    source = "..., " if same_rows else ""
    message = (
        f"Stopped after saving. Go on{same_rows}:\n"
        f"  headstart.finetune({source}run={str(preparation.run_dir)!r}, resume=True)"
    )
    end_as_signalled(number, message)
