"""Search settings with Optuna: trials that can be pruned, stopped, resumed, and shared by several processes.

Layer 5; may import everything but the doors. Needs the extra `search`. A search is a folder:

    tuning/  tuning.json  recipe.yaml  trials.sqlite3  trial-0/ ...  trials.json  best.yaml  tuning.svg  .locks/

Every trial trains an ordinary run without touching the test rows: its score is that of the last step on the validation
rows. The best one is then scored like any run, so its test score has not chosen it. A process that was killed leaves a
trial that the next one goes on with; a process that is started on the same folder takes part.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import time
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from headstart.errors import CheckpointError, NonFiniteError, RecipeError
from headstart.metrics import higher_is_better
from headstart.preparation import Plan, prepare_plan
from headstart.reading import split_seed
from headstart.recipe import Recipe, build_recipe
from headstart.records import EvaluationRecord, Record, Report, StopRecord
from headstart.results import write_results
from headstart.run import Run
from headstart.run_files import read_json, write_json, write_text
from headstart.runlog import CARD_FILE, CHECKPOINTS_DIR, RECIPE_FILE, TUNING_FILE, RunLock
from headstart.search_space import SearchSetting, as_text, setting_from
from headstart.training_run import run_plan

__all__ = ["TrialLine", "Tuning", "TuningTrial", "start_tuning"]

STORAGE_FILE = "trials.sqlite3"
TABLE_FILE = "trials.json"
BEST_RECIPE_FILE = "best.yaml"
# Scores are compared at these shares of a trial's own steps, so that trials of different lengths can be.
EVALUATE_EVERY = "25%"
_STARTUP_TRIALS = 4  # are never pruned, and drawn at random
_LOCKS_DIR = ".locks"
_PAUSE = 0.5  # seconds between two looks at what other processes do
_PATIENCE = 600  # seconds; the end of a search is scored while the others wait


@dataclass(frozen=True)
class TrialLine:
    """One trial, as the table shows it.

    Args:
        number: from 0.
        state: "done", "pruned", "failed" or "running".
        score: on the validation rows at its last evaluation; None before the first.
        values: "section.key" to the value that was tried.
        seconds: of its training.
    """

    number: int
    state: str
    score: float | None
    values: dict[str, Any]
    seconds: float


class TuningTrial:
    """A trial under way, which this process holds until `close`.

    Args:
        plan: what is trained.
        trial: of Optuna.
        tuning: that it belongs to.
        lock: says to other processes that this one is at it.
    """

    def __init__(self, plan: Plan, trial: Any, tuning: Tuning, lock: RunLock) -> None:
        self.plan = plan
        self.is_pruned = False
        self._trial = trial
        self._tuning = tuning
        self._lock = lock

    def close(self) -> None:
        """Let the trial go; where it has not ended, the next process goes on with it."""
        self._lock.__exit__(None, None, None)

    @property
    def values(self) -> dict[str, Any]:
        """The value that is tried of each "section.key"."""
        return self._tuning.values_of(self._trial.params)

    @property
    def number(self) -> int:
        """From 0."""
        return int(self._trial.number)

    @property
    def requests(self) -> set[str]:
        """Words for the loop: "stop" finishes the step, saves and ends."""
        return self.plan.requests

    def train(self) -> Generator[Record]:
        """Train, telling Optuna the score of each evaluation; a trial that it gives up ends without saving.

        A loss that is not finite ends the trial as one that failed, which is told and costs the search no more.
        """
        optuna = import_optuna()
        told, stop = self._told(), None
        score = told[max(told)] if told else None
        try:
            for record in run_plan(self.plan):
                yield record
                if isinstance(record, EvaluationRecord):
                    score = record.scores[self._tuning.score_name]
                    # Steps of an evaluation are rounded up; the quarter is the same for trials of any length.
                    share = 25 * (4 * record.step // self.plan.total_steps)
                    if share not in told:  # it comes again after a kill, and two fall together in three steps
                        self._trial.report(score, share)
                        told[share] = score
                    if record.step < self.plan.total_steps and self._trial.should_prune():
                        self.is_pruned = True
                        self.plan.requests.add("end")
                elif isinstance(record, StopRecord):
                    stop = record
        except NonFiniteError:
            self._tuning.study.tell(self._trial, state=optuna.trial.TrialState.FAIL)
            return
        if self.is_pruned:
            self._tuning.study.tell(self._trial, state=optuna.trial.TrialState.PRUNED)
            shutil.rmtree(self.plan.run_dir / CHECKPOINTS_DIR, ignore_errors=True)
        elif stop is not None and stop.reason != "requested":
            if score is None or not math.isfinite(score):
                self._tuning.study.tell(self._trial, state=optuna.trial.TrialState.FAIL)
            else:
                self._tuning.study.tell(self._trial, score)

    def _told(self) -> dict[int, float]:
        """Give the scores that a process before this one has told of this trial, by the share of its steps."""
        told: dict[int, float] = self._tuning.study.trials[self.number].intermediate_values
        return told


class Tuning:
    """A folder of trials.

    Args:
        tuning_dir: the folder.

    Raises:
        CheckpointError: it is none.
        RecipeError: Optuna is not installed.
    """

    def __init__(self, tuning_dir: str | Path) -> None:
        self.tuning_dir = Path(tuning_dir)
        if not (self.tuning_dir / TUNING_FILE).is_file():
            raise CheckpointError(
                f"{self.tuning_dir}: no search ({TUNING_FILE} is not there).",
                "a folder that headstart tune left.",
                "Check the path.",
            )
        self._data = read_json(self.tuning_dir / TUNING_FILE)

    def __repr__(self) -> str:
        """Show the folder and how far it is."""
        return f"Tuning({str(self.tuning_dir)!r}, {self.num_ended} of {self.num_trials} trials)"

    @property
    def num_trials(self) -> int:
        """How many trials there are to be."""
        return int(self._data["num_trials"])

    @property
    def score_name(self) -> str:
        """What is searched for: a score of the validation rows."""
        return str(self._data["score"])

    @property
    def space(self) -> list[SearchSetting]:
        """What is tried."""
        return [setting_from(key, values) for key, values in self._data["space"].items()]

    @property
    def recipe(self) -> Recipe:
        """The recipe that the trials share."""
        return build_recipe(self.tuning_dir / RECIPE_FILE)

    @cached_property
    def study(self) -> Any:
        """The study of Optuna, in its SQLite file."""
        optuna = import_optuna()
        address = f"sqlite:///{self.tuning_dir.resolve() / STORAGE_FILE}"
        # Processes wait for each other's writes instead of giving up.
        storage = optuna.storages.RDBStorage(address, engine_kwargs={"connect_args": {"timeout": 60}})
        study = optuna.create_study(
            storage=storage,
            study_name="headstart",
            load_if_exists=True,
            direction="maximize" if higher_is_better(self.score_name) else "minimize",
            pruner=optuna.pruners.MedianPruner(n_startup_trials=_STARTUP_TRIALS, n_warmup_steps=25),
        )
        states = [trial.state.name for trial in study.get_trials(deepcopy=False)]
        # One process alone draws by the seed; after a stop, or beside others, it must not draw the same again.
        beside = os.getpid() if "RUNNING" in states else 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # multivariate
            study.sampler = optuna.samplers.TPESampler(
                seed=(int(self._data["seed"]) + 1_000_003 * len(states) + beside) % 2**32,
                multivariate=True,
                n_startup_trials=_STARTUP_TRIALS,
            )
        return study

    @property
    def trials(self) -> list[TrialLine]:
        """All trials so far, in order."""
        names = {"COMPLETE": "done", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running", "WAITING": "waiting"}
        lines = []
        for trial in self.study.trials:
            told = trial.intermediate_values
            score = trial.value if trial.value is not None else told[max(told)] if told else None
            seconds = trial.duration.total_seconds() if trial.duration is not None else 0.0
            values = self.values_of(trial.params)
            lines.append(TrialLine(trial.number, names[trial.state.name], score, values, seconds))
        return lines

    @property
    def num_ended(self) -> int:
        """Trials that are done, pruned or failed."""
        return sum(trial.state in ("done", "pruned", "failed") for trial in self.trials)

    @property
    def is_finished(self) -> bool:
        """Whether the best trial is scored and the table written."""
        return (self.tuning_dir / TABLE_FILE).exists()

    def values_of(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Give the values of the recipe that a trial's parameters mean."""
        optuna = import_optuna()
        fixed = optuna.trial.FixedTrial(dict(parameters))
        return {setting.key: setting.suggest(fixed) for setting in self.space if setting.key in parameters}

    def next_trial(self, source: Any = None, progress: Report | None = None) -> TuningTrial | None:
        """Prepare the next trial: one that a process has left, else a new one; None where there is no more.

        While other processes still train the last ones it waits, so as to go on with what they may leave.

        Args:
            source: of the training rows where they are in memory; None takes it from the recipe.
            progress: gets what is done now.
        """
        say: Report = progress or (lambda text, done, total: None)
        while True:
            with self._alone():
                taken, held_elsewhere = self._take_trial()
            if taken is not None:
                trial, lock = taken
                try:
                    return TuningTrial(self._plan(trial, source, progress), trial, self, lock)
                except BaseException:
                    lock.__exit__(None, None, None)
                    raise
            if not held_elsewhere:
                return None
            numbers = ", ".join(str(number) for number in held_elsewhere)
            say(f"waiting for what other processes train: trial {numbers}", 0, 0)
            time.sleep(_PAUSE)

    def _take_trial(self) -> tuple[tuple[Any, RunLock] | None, list[int]]:
        """Take a trial that nobody is at, or a new one; else say which ones others are at."""
        optuna = import_optuna()
        known = self.study.get_trials(deepcopy=False)
        held_elsewhere = []
        for frozen in known:
            if frozen.state == optuna.trial.TrialState.RUNNING:
                lock = self._hold(frozen.number)
                if lock is not None:
                    return (self._choose(optuna.trial.Trial(self.study, frozen._trial_id)), lock), []
                held_elsewhere.append(frozen.number)
        is_waiting = any(frozen.state == optuna.trial.TrialState.WAITING for frozen in known)
        if len(known) >= self.num_trials and not is_waiting:
            return None, held_elsewhere
        trial = self.study.ask()
        lock = self._hold(trial.number)
        assert lock is not None  # nobody else has ever heard of it
        return (self._choose(trial), lock), []

    def _choose(self, trial: Any) -> Any:
        """Let Optuna choose each value; one that it has chosen before stays."""
        for setting in self.space:
            setting.suggest(trial)
        return trial

    def _hold(self, number: int) -> RunLock | None:
        """Take the lock of a trial; None where another process has it."""
        folder = self.tuning_dir / _LOCKS_DIR / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        lock = RunLock(folder)
        try:
            return lock.__enter__()
        except CheckpointError:
            return None

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Wait until no other process chooses a trial, or ends the search."""
        folder = self.tuning_dir / _LOCKS_DIR
        folder.mkdir(parents=True, exist_ok=True)
        end = time.monotonic() + _PATIENCE
        lock = RunLock(folder)
        while True:
            try:
                lock.__enter__()
                break
            except CheckpointError:
                if time.monotonic() > end:
                    raise
                time.sleep(_PAUSE / 10)
        try:
            yield
        finally:
            lock.__exit__(None, None, None)

    def folder_of(self, number: int) -> Path:
        """Give the run folder of a trial."""
        return self.tuning_dir / f"trial-{number}"

    def _plan(self, trial: Any, source: Any, progress: Report | None) -> Plan:
        folder = self.folder_of(trial.number)
        if (folder / RECIPE_FILE).exists():
            return prepare_plan(values={"output.run": str(folder)}, source=source, resume=True, progress=progress)
        return prepare_plan(
            source,
            recipe_file=self.tuning_dir / RECIPE_FILE,
            values={**self.values_of(trial.params), "output.run": str(folder)},
            debug=bool(self._data["debug"]),
            progress=progress,
        )

    def finish(self, source: Any = None, progress: Report | None = None) -> Run:
        """Score the best trial as a run, drop what the others have left to go on from, and write the table.

        Args:
            source: of the training rows where they are in memory.
            progress: gets what is done now.

        Raises:
            CheckpointError: no trial came to its end.
        """
        with self._alone():
            return self._finish(source, progress)

    def _finish(self, source: Any, progress: Report | None) -> Run:
        best = self.best_trial
        folder = self.folder_of(best.number)
        if self.is_finished:  # another process was faster
            return Run(folder)
        if not (folder / CARD_FILE).exists():
            plan = prepare_plan(values={"output.run": str(folder)}, source=source, resume=True, progress=progress)
            for _ in run_plan(plan):
                pass  # all steps are made: it says so
            write_results(plan, progress)
        for trial in self.trials:
            if trial.number != best.number:
                shutil.rmtree(self.folder_of(trial.number) / CHECKPOINTS_DIR, ignore_errors=True)
        table = {
            "score": self.score_name,
            "best": best.number,
            "trials": [vars(trial) for trial in self.trials],
            "importances": self.importances(),
        }
        write_text(self.tuning_dir / BEST_RECIPE_FILE, self.best_recipe.to_yaml())
        write_json(self.tuning_dir / TABLE_FILE, table)
        return Run(folder)

    @property
    def best_trial(self) -> TrialLine:
        """The trial with the best score among those that came to their end.

        Raises:
            CheckpointError: none did.
        """
        done = [trial for trial in self.trials if trial.state == "done" and trial.score is not None]
        if not done:
            raise CheckpointError(
                f"{self.tuning_dir}: no trial came to its end.",
                "a trial whose losses are finite.",
                "Look at the logs of its trials; try smaller learning rates.",
            )
        choose = max if higher_is_better(self.score_name) else min
        return choose(done, key=lambda trial: trial.score if trial.score is not None else math.nan)

    @property
    def best_recipe(self) -> Recipe:
        """The recipe with the values of the best trial, and without what the search needed for itself.

        Raises:
            CheckpointError: no trial came to its end.
        """
        return self.recipe.replace({**self._data["own"], **self.best_trial.values})

    @property
    def best(self) -> Run:
        """The best trial, as a run.

        Raises:
            CheckpointError: the search has not ended.
        """
        return Run(self.folder_of(self.best_trial.number))

    def importances(self) -> dict[str, float]:
        """Give for each setting the share of the scores' variance that it explains; they sum to 1.

        Empty for fewer than 4 trials that are done, or where all scores are alike.

        Source: Hutter, Hoos & Leyton-Brown 2014, An Efficient Approach for Assessing Hyperparameter Importance.
        """
        optuna = import_optuna()
        done = [trial for trial in self.trials if trial.state == "done"]
        if len(done) < _STARTUP_TRIALS or len({trial.score for trial in done}) < 2:
            return {}
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=int(self._data["seed"]))
        found: dict[str, float] = optuna.importance.get_param_importances(self.study, evaluator=evaluator)
        return {key: float(share) for key, share in found.items()}


def start_tuning(
    tuning_dir: Path,
    plan: Plan,
    space: Sequence[SearchSetting],
    num_trials: int,
    values: Mapping[str, Any],
    *,
    debug: bool = False,
) -> Tuning:
    """Make the folder of a search, with the recipe's own values as its first trial.

    Args:
        tuning_dir: a new folder.
        plan: of the recipe's own values; what it has filled in holds for all trials.
        space: what is tried.
        num_trials: how many trials.
        values: what trials have besides: "section.key" to value.
        debug: a handful of rows.

    Raises:
        RecipeError: there are no labelled validation rows to compare trials by.
    """
    validation = plan.data.splits.get("validation")
    if validation is None or not validation.is_labelled:
        raise RecipeError(
            "There are no labelled validation rows to compare trials by.",
            "validation rows, or training rows to cut them from.",
            "Give --validation SOURCE.",
        )
    recipe = plan.recipe
    other: dict[str, Any] = {
        "output.run": None,
        "train.evaluate_every": EVALUATE_EVERY,
        "train.save_every": EVALUATE_EVERY,
        "train.keep": 1,
        "train.best": "last",  # the end of a trial is what is compared
        "train.patience": None,
        "data.seed": split_seed(recipe),
        **values,
    }
    shared = recipe.replace(other)
    tuning_dir.mkdir(parents=True, exist_ok=True)
    write_text(tuning_dir / RECIPE_FILE, shared.to_yaml())
    write_json(
        tuning_dir / TUNING_FILE,
        {
            "score": plan.scores[0] if recipe.train.best in (None, "last") else recipe.train.best,
            "num_trials": num_trials,
            "seed": recipe.train.seed,
            "debug": debug,
            "space": {setting.key: setting.to_dict() for setting in space},
            "own": {key: _value_of(recipe, key) for key in other if key != "output.run"},
        },
    )
    tuning = Tuning(tuning_dir)
    own = {setting.key: _own_value(recipe, setting) for setting in space}
    tuning.study.enqueue_trial({key: value for key, value in own.items() if value is not None})
    return tuning


def _own_value(recipe: Recipe, setting: SearchSetting) -> Any:
    """Give the recipe's value of a setting as Optuna stores it; None where it is not among those that are tried."""
    value = _value_of(recipe, setting.key)
    if setting.choices:
        return as_text(value) if value in setting.choices else None
    if value is None or not (setting.low or 0) <= value <= (setting.high or 0):
        return None
    return int(value) if setting.is_whole else float(value)


def _value_of(recipe: Recipe, key: str) -> Any:
    section, _, field = key.partition(".")
    return getattr(getattr(recipe, section), field)


def import_optuna() -> Any:
    """Import Optuna, and let it be quiet.

    Raises:
        RecipeError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise RecipeError(
            "A search needs Optuna, which is not installed.",
            "the extra search.",
            "Run: pip install 'headstart[search]'",
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
