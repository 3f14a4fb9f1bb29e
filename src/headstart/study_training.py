"""Train all runs of a study, one after the other: `cross_validate()`, `finetune_seeds()`, and what the command takes.

Layer 5; may import everything but the doors.

    prepare_study -> StudyTraining -> a Preparation for each run that is not finished -> finish -> Study
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from headstart.api import Preparation, named_settings, prepare, train_watched
from headstart.display.layout import HEADING, make_console
from headstart.display.plan import PlanSummary, show_plan
from headstart.display.status import Status
from headstart.display.studies import show_study
from headstart.errors import RecipeError, suggest
from headstart.interruption import Stopped, end_as_signalled
from headstart.preparation import absolute_source, take_folder_of_runs
from headstart.reading import name_splits
from headstart.recipe import build_recipe, read_recipe_file
from headstart.records import Report
from headstart.resumption import RunIsFinished, check_unfinished
from headstart.runlog import RECIPE_FILE, new_run_dir
from headstart.study import (
    KEEP_MODELS,
    KeepModels,
    Kind,
    Study,
    StudyRun,
    finish_study,
    plan_study,
    start_study,
)
from headstart.training.device import is_joined

__all__ = ["StudyTraining", "cross_validate", "finetune_seeds", "prepare_study", "train_study"]


class StudyTraining:
    """A study that is ready to start, or to go on.

    Args:
        source: of the training rows where they are in memory; None takes it from the recipe.
        study: its folder, where it was started; None before.
        first: the training of its first run, where it was not started.
        runs: that it consists of.
        keep_models: which models stay.
        study_dir: where it goes; None chooses a name when it starts.
        debug: a handful of rows and steps.
    """

    def __init__(
        self,
        source: Any,
        study: Study | None,
        first: Preparation | None,
        runs: Sequence[StudyRun],
        keep_models: KeepModels,
        study_dir: Path | None,
        debug: bool,
    ) -> None:
        self._source = source
        self._study = study
        self._first = first
        self._runs = list(runs)
        self._keep_models = keep_models
        self._study_dir = study_dir
        self._debug = debug

    @property
    def summary(self) -> PlanSummary | None:
        """The plan of the first run; None where the study goes on."""
        return self._first.summary if self._first is not None else None

    @property
    def num_runs(self) -> int:
        """How many runs there are."""
        return len(self._runs)

    @property
    def names(self) -> str:
        """The first and the last run, for people."""
        return f"{self._runs[0].name} to {self._runs[-1].name}"

    @property
    def study_dir(self) -> Path:
        """The folder; settled when it starts."""
        return self.start().study_dir

    def start(self) -> Study:
        """Make the folder, unless it is there."""
        if self._study is None:
            assert self._first is not None
            if self._study_dir is None:
                run_dir = self._first.run_dir
                self._study_dir = new_run_dir(run_dir.parent, run_dir.name.rpartition("-")[0])
            kind: Kind = "folds" if "data.fold" in self._runs[0].values else "seeds"
            self._study = start_study(self._study_dir, self._first.recipe, self._runs, kind, self._keep_models)
        return self._study

    def preparations(self, progress: Report | None = None) -> Iterator[tuple[int, StudyRun, Preparation | None]]:
        """Give the runs in turn, each prepared when it is asked for; None for one that is finished.

        Args:
            progress: gets what is done now.
        """
        study = self.start()
        for number, run in enumerate(self._runs, start=1):
            folder = study.study_dir / run.name
            try:
                check_unfinished(folder)
                resume = (folder / RECIPE_FILE).exists()
                if number == 1 and not resume and self._first is not None and self._first.run_dir == folder:
                    yield number, run, self._first
                    continue
                values = {**run.values, "output.run": str(folder)}
                preparation = prepare(
                    self._source,
                    recipe_file=None if resume else study.study_dir / RECIPE_FILE,
                    values={"output.run": str(folder)} if resume else values,
                    resume=resume,
                    debug=self._debug and not resume,
                    progress=progress,
                )
            except RunIsFinished:
                yield number, run, None
            else:
                yield number, run, preparation

    def finish(self, progress: Report | None = None) -> Study:
        """Put the runs together; see `finish_study`."""
        study = self.start()
        finish_study(study, self._source, progress)
        return study


def prepare_study(
    source: Any = None,
    *,
    seeds: int | None = None,
    folds: int | None = None,
    keep_models: KeepModels = "all",
    recipe_file: str | Path | None = None,
    settings: Sequence[str] = (),
    values: Mapping[str, Any] | None = None,
    resume: bool = False,
    debug: bool = False,
    progress: Report | None = None,
) -> StudyTraining:
    """Read, check and plan the first run of a study; nothing is written.

    Args:
        source: training source; None takes it from the recipe.
        seeds: how many seeds.
        folds: how many folds.
        keep_models: "all", "best" or "average".
        recipe_file: a YAML recipe.
        settings: texts such as "train.epochs=5".
        values: "section.key" to value; None values are left out.
        resume: go on with the study in `output.run`.
        debug: a handful of rows and steps.
        progress: gets what is done now, and how many of the rows are done.

    Raises:
        HeadstartError: of the kind that fits; nothing was written.
    """
    if keep_models not in KEEP_MODELS:
        raise RecipeError(f'--keep-models: "{keep_models}" is unknown.', suggest(keep_models, KEEP_MODELS))
    if is_joined():
        raise RecipeError(
            "Several runs cannot be trained by processes that were started from outside (torchrun).",
            "one process, which starts the others of each run itself.",
            "Start it without torchrun, with --processes N.",
        )
    values = {key: value for key, value in (values or {}).items() if value is not None}
    if resume:
        return _resumed(source, values, settings, recipe_file, seeds, folds)
    for key in ("data.train", "data.validation", "data.test"):
        if isinstance(values.get(key), str):
            values[key] = absolute_source(values[key])
    recipe = build_recipe(Path(recipe_file) if recipe_file is not None else None, settings, values)
    runs = plan_study(recipe, seeds=seeds, folds=folds, keep_models=keep_models)
    study_dir, settings, own = take_folder_of_runs(recipe, settings, values, what="study", command="train")
    first = prepare(
        source,
        recipe_file=recipe_file,
        settings=settings,
        values={**own, **runs[0].values, **({"output.run": str(study_dir / runs[0].name)} if study_dir else {})},
        debug=debug,
        progress=progress,
    )
    in_memory = None if isinstance(source, str | Path | None) else source
    return StudyTraining(in_memory, None, first, runs, keep_models, study_dir, debug)


def _resumed(
    source: Any,
    values: Mapping[str, Any],
    settings: Sequence[str],
    recipe_file: str | Path | None,
    seeds: int | None,
    folds: int | None,
) -> StudyTraining:
    """Go on with a study; whatever else is given would have no effect."""
    study = Study(str(values.get("output.run", "")))
    given = [key for key in values if key != "output.run"]
    given += [*settings, *(["--recipe"] if recipe_file is not None else [])]
    for name, number in (("seeds", seeds), ("folds", folds)):
        if number is not None and (name != study.kind or number != len(study.plan)):
            given.append(f"--{name} {number}")
    if given:
        raise RecipeError(
            f"{study.study_dir} was started with settings of its own; given now: {', '.join(given)}.",
            "nothing but --resume and --run.",
            f"Run: headstart train --resume --run {study.study_dir}",
        )
    in_memory = None if isinstance(source, str | Path | None) else source
    first = study.study_dir / study.plan[0].name / RECIPE_FILE
    debug = first.exists() and bool(read_recipe_file(first)[1].get("debug", False))
    return StudyTraining(in_memory, study, None, study.plan, study.keep_models, None, debug)


def cross_validate(
    source: Any = None,
    *,
    folds: int = 5,
    test: Any = None,
    keep_models: KeepModels = "all",
    recipe: str | Path | None = None,
    settings: Sequence[str] = (),
    resume: bool = False,
    debug: bool = False,
    progress: bool = True,
    **named: Any,
) -> Study:
    """Train as many runs as there are folds, each scored on the rows of the fold that it did not learn from.

    Folds keep the shares of the classes; whole groups together with `data.group`; and with `data.time` each fold is
    validated by what came before it. The last step's weights are scored, so that no held-out row has chosen them.

    Args:
        source: as for `finetune()`.
        folds: how many, 2 or more.
        test: source of the test rows, which each run is scored on, too.
        keep_models: "all", or the "best" only.
        recipe: a YAML recipe; the other arguments win over it.
        settings: any other setting, as "section.key=value".
        resume: go on with the study in `run`.
        debug: a handful of rows and steps.
        progress: show plan, progress and result.
        **named: the other arguments of `finetune()`: text, pair, label, task, model, run, epochs, batch_size,
            learning_rate, max_length, seed, limit, processes.

    Returns:
        The study: `study.scores["held_out"]` scores every row once, with intervals over rows.

    Raises:
        HeadstartError: of the kind that fits.
        KeyboardInterrupt: stopped by Ctrl-C, after saving.

    Example:
        study = headstart.cross_validate("reviews.csv", folds=5, epochs=2)
        study.scores["held_out"]["accuracy"]

    Source: Kohavi 1995, A Study of Cross-Validation and Bootstrap for Accuracy Estimation and Model Selection.
    """
    number = {} if resume else {"folds": folds}
    return _carry_out(source, test, None, recipe, settings, resume, debug, progress, named, keep_models, **number)


def finetune_seeds(
    source: Any = None,
    *,
    seeds: int = 5,
    test: Any = None,
    validation: Any = None,
    keep_models: KeepModels = "all",
    recipe: str | Path | None = None,
    settings: Sequence[str] = (),
    resume: bool = False,
    debug: bool = False,
    progress: bool = True,
    **named: Any,
) -> Study:
    """Train one run a seed on the same rows, to see how far scores differ by chance alone.

    Args:
        source: as for `finetune()`.
        seeds: how many, 2 or more, from `seed` on.
        test: source of the test rows.
        validation: source of the validation rows; None cuts them from train, the same for all seeds.
        keep_models: "all"; the "best" on the validation rows only; or "average", a model with the mean of all weights,
            whose new parameters then begin alike.
        recipe: a YAML recipe; the other arguments win over it.
        settings: any other setting, as "section.key=value".
        resume: go on with the study in `run`.
        debug: a handful of rows and steps.
        progress: show plan, progress and result.
        **named: the other arguments of `finetune()`, as for `cross_validate()`.

    Returns:
        The study: `study.scores["validation"]["accuracy"]` has mean, standard deviation and the value of each run.

    Raises:
        HeadstartError: of the kind that fits.
        KeyboardInterrupt: stopped by Ctrl-C, after saving.

    Example:
        study = headstart.finetune_seeds("reviews.csv", seeds=3, keep_models="best")
        study.best.predict(["loved it"])

    Source: Dodge et al. 2020, Fine-Tuning Pretrained Language Models: Weight Initializations, Data Orders, and Early
    Stopping.
    """
    number = {} if resume else {"seeds": seeds}
    return _carry_out(source, test, validation, recipe, settings, resume, debug, progress, named, keep_models, **number)


def _carry_out(
    source: Any,
    test: Any,
    validation: Any,
    recipe: str | Path | None,
    settings: Sequence[str],
    resume: bool,
    debug: bool,
    progress: bool,
    named: Mapping[str, Any],
    keep_models: KeepModels,
    **number: int,
) -> Study:
    source, in_files = name_splits(source, validation=validation, test=test)
    console = make_console(None)
    console.quiet = not progress
    with Status(console) as status:
        training = prepare_study(
            source,
            recipe_file=recipe,
            settings=settings,
            values={**in_files, **named_settings(**named)},
            keep_models=keep_models,
            resume=resume,
            debug=debug,
            progress=status.say,
            **number,
        )
    if training.summary is not None:
        show_plan(training.summary, console)
    try:
        study = train_study(training, console, ends_process=False)
    except Stopped as stopped:
        same_rows = "" if isinstance(source, str | Path | None) else "..., "
        name = "cross_validate" if "folds" in number else "finetune_seeds"
        call = f"headstart.{name}({same_rows}run={str(training.study_dir)!r}, resume=True)"
        end_as_signalled(stopped.number, f"Stopped after saving. Go on:\n  {call}")
    show_study(study.scores, study_dir=study.study_dir, console=console)
    return study


def train_study(training: StudyTraining, console: Any, *, ends_process: bool) -> Study:
    """Train the runs that are not finished, and put all together.

    Args:
        training: of the study.
        console: where the progress is shown.
        ends_process: see `Interruption`.

    Raises:
        Stopped: a signal has come, and everything is saved.
    """
    runs = training.preparations()
    while True:
        with Status(console) as status:
            status.say("reading")
            number, run, preparation = next(runs, (0, None, None))
        if run is None:
            break
        state = "   is finished" if preparation is None else ""
        console.print(Text.assemble((f" {run.name}", HEADING), f"   {number} of {training.num_runs}{state}"))
        if preparation is not None:
            train_watched(preparation, console, ends_process=ends_process)
    with Status(console) as status:
        return training.finish(status.say)
