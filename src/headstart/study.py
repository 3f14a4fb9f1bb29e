"""Several runs of one plan: with several seeds, or with each fold of the rows held out in turn.

Layer 5; may import everything but the doors. A study is a folder of ordinary run folders:

    study/  study.json  recipe.yaml  scores.json  seed-0/ seed-1/ ...      (or fold-1/ fold-2/ ...)
            predictions.parquet (of folds: every row by the run that did not learn from it)
            average/ (a run folder, where the weights of all seeds are averaged on request)

Whatever is there when it is killed stays: a resume goes on with the run that was under way.
"""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from headstart.errors import CheckpointError, RecipeError
from headstart.metrics import higher_is_better
from headstart.preparation import prepare_plan
from headstart.reading import split_seed
from headstart.recipe import Recipe, build_recipe
from headstart.records import Report, StopRecord
from headstart.results import write_results
from headstart.run import Run
from headstart.run_files import read_json, write_json, write_text
from headstart.run_writer import RunWriter
from headstart.runlog import (
    CARD_FILE,
    CHECKPOINTS_DIR,
    MODEL_DIR,
    PREDICTIONS_FILE,
    RECIPE_FILE,
    SCORES_FILE,
    STUDY_FILE,
    TASK_FILE,
)
from headstart.scoring import score_with_intervals
from headstart.tasks import Task, task_from_dict

__all__ = [
    "KEEP_MODELS",
    "KeepModels",
    "Kind",
    "Study",
    "StudyRun",
    "describe_spread",
    "finish_study",
    "is_study",
    "plan_study",
    "start_study",
    "summarise",
]

AVERAGE_DIR = "average"
KeepModels = Literal["all", "best", "average"]
KEEP_MODELS: tuple[KeepModels, ...] = ("all", "best", "average")
Kind = Literal["seeds", "folds"]
Numbers = dict[str, Any]


@dataclass(frozen=True)
class StudyRun:
    """One run of a study that is to be made.

    Args:
        name: of its folder: "seed-0", "fold-1".
        values: what its recipe has that the others' have not: "section.key" to value.
    """

    name: str
    values: Mapping[str, Any]


class Study:
    """A folder of runs with several seeds or folds, and what they say together.

    Args:
        study_dir: the folder.

    Raises:
        CheckpointError: it is no study.
    """

    def __init__(self, study_dir: str | Path) -> None:
        self.study_dir = Path(study_dir)
        if not is_study(self.study_dir):
            raise CheckpointError(
                f"{self.study_dir}: no study ({STUDY_FILE} is not there).",
                "a folder that --seeds or --folds left.",
                "Check the path.",
            )
        self._data = read_json(self.study_dir / STUDY_FILE)

    def __repr__(self) -> str:
        """Show the folder and what it holds."""
        return f"Study({str(self.study_dir)!r}, {len(self.plan)} {self.kind})"

    @property
    def kind(self) -> Kind:
        """What differs between the runs: "seeds" or "folds"."""
        kind: Kind = self._data["kind"]
        return kind

    @property
    def keep_models(self) -> KeepModels:
        """Which models stay: "all", the "best" of the validation rows, or their "average"."""
        keep: KeepModels = self._data["keep_models"]
        return keep

    @property
    def plan(self) -> list[StudyRun]:
        """The runs that belong to it, made or not."""
        return [StudyRun(run["name"], run["values"]) for run in self._data["runs"]]

    @property
    def is_finished(self) -> bool:
        """Whether all runs are made and put together."""
        return (self.study_dir / SCORES_FILE).exists()

    @property
    def runs(self) -> list[Run]:
        """The finished runs, in order."""
        folders = [self.study_dir / run.name for run in self.plan]
        return [Run(folder) for folder in folders if (folder / CARD_FILE).exists() and (folder / MODEL_DIR).is_dir()]

    @property
    def average(self) -> Run | None:
        """The run with the averaged weights, where that was asked for."""
        folder = self.study_dir / AVERAGE_DIR
        return Run(folder) if (folder / CARD_FILE).exists() else None

    @property
    def best(self) -> Run:
        """The run with the best first score on the validation rows.

        Raises:
            CheckpointError: its model was not kept, or no run is finished.
        """
        name = self.scores.get("best")
        if name is None:
            raise CheckpointError(
                f"{self.study_dir}: no run is the best one.", "labelled validation rows.", "Choose one."
            )
        return Run(self.study_dir / name)

    @property
    def task(self) -> Task:
        """What is learned."""
        return task_from_dict(read_json(self.study_dir / self.plan[0].name / TASK_FILE))

    @property
    def recipe(self) -> Recipe:
        """The recipe that the runs share."""
        return build_recipe(self.study_dir / RECIPE_FILE)

    @property
    def scores(self) -> Numbers:
        """What `scores.json` holds: split to score to mean, spread and each run's value; see `docs/run_folder.md`."""
        return read_json(self.study_dir / SCORES_FILE)


def is_study(folder: str | Path) -> bool:
    """Say whether a folder holds a study."""
    return (Path(folder) / STUDY_FILE).is_file()


def plan_study(
    recipe: Recipe, *, seeds: int | None = None, folds: int | None = None, keep_models: KeepModels = "all"
) -> list[StudyRun]:
    """Say which runs a study consists of.

    Args:
        recipe: that they share; its seed is the first one.
        seeds: how many, from that of the recipe on. The rows of each split are the same for all of them.
        folds: how many.
        keep_models: with "average" the new parameters begin alike, too.

    Raises:
        RecipeError: neither or both are given, fewer than 2, or the recipe says otherwise which rows validate.

    Example:
        >>> [run.name for run in plan_study(build_recipe(), folds=3)]
        ['fold-1', 'fold-2', 'fold-3']
    """
    if (seeds is None) == (folds is None):
        raise RecipeError("A study has several seeds or several folds.", "one of them.", "Give --seeds or --folds.")
    number = seeds if seeds is not None else folds or 0
    if number < 2:
        raise RecipeError(
            f"--{'seeds' if seeds is not None else 'folds'} is {number}.", "2 or more.", "Leave it out for one run."
        )
    if seeds is not None:
        first = recipe.train.seed
        fixed = {"data.seed": split_seed(recipe)}
        if keep_models == "average":  # weights can be averaged of models that began alike
            fixed["model.seed"] = first if recipe.model.seed is None else recipe.model.seed
        return [StudyRun(f"seed-{seed}", {"train.seed": seed, **fixed}) for seed in range(first, first + seeds)]
    if keep_models == "average":
        raise RecipeError(
            "The models of folds are not averaged: each has learned from most rows that the others are scored with.",
            "all or best.",
            "Leave --keep-models out, or train with --seeds.",
        )
    for field in ("validation", "validation_fraction", "fold"):
        if getattr(recipe.data, field) is not None:
            raise RecipeError(
                f"data.{field} has no effect with --folds: each fold of the training rows validates once.",
                "training rows, and test rows if there are some.",
                f"Remove data.{field}.",
            )
    values: dict[str, Any] = {}
    if recipe.train.best is None and recipe.train.patience is None:
        # Held-out rows that choose the checkpoint would flatter their own scores.
        values["train.best"] = "last"
    return [StudyRun(f"fold-{fold}", {"data.fold": f"{fold}/{folds}", **values}) for fold in range(1, number + 1)]


def start_study(
    study_dir: Path, recipe: Recipe, runs: Sequence[StudyRun], kind: Kind, keep_models: KeepModels
) -> Study:
    """Make the folder of a study; nothing is trained yet.

    Args:
        study_dir: a new folder.
        recipe: of its first run, which the others share but for their own values.
        runs: that it consists of.
        kind: what differs between them.
        keep_models: which models stay.
    """
    study_dir.mkdir(parents=True, exist_ok=True)
    own = {key for run in runs for key in run.values} | {"output.run"}
    shared = recipe.replace(dict.fromkeys(own - {"train.seed", "train.best"}))
    write_text(study_dir / RECIPE_FILE, shared.to_yaml())
    data = {
        "kind": kind,
        "keep_models": keep_models,
        "runs": [{"name": run.name, "values": dict(run.values)} for run in runs],
    }
    write_json(study_dir / STUDY_FILE, data)
    return Study(study_dir)


def summarise(study: Study, progress: Report | None = None) -> Numbers:
    """Put the scores of all runs together.

    Args:
        study: all of whose runs are finished.
        progress: gets what is done now.

    Returns:
        What `scores.json` is to hold.
    """
    say: Report = progress or (lambda text, done, total: None)
    say("putting the runs together", 0, 0)
    by_run = {run.name: read_json(study.study_dir / run.name / SCORES_FILE) for run in study.plan}
    scores: Numbers = {"kind": study.kind, "runs": list(by_run)}
    for split in ("test", "validation"):
        if all(found.get(split) for found in by_run.values()):
            scores[split] = {
                name: describe_spread([found[split][name] for found in by_run.values()])
                for name in next(iter(by_run.values()))[split]
            }
    baselines = [found.get("baselines", {}) for found in by_run.values()]
    scores["baselines"] = {
        baseline: {
            split: {
                name: describe_spread([found[baseline][split][name] for found in baselines])["mean"]
                for name in baselines[0][baseline][split]
            }
            for split in ("test", "validation")
            if split in scores and split in baselines[0][baseline]
        }
        for baseline in baselines[0]
    }
    first_score = next(iter(scores.get("validation", {})), None)
    if first_score is not None:
        values = scores["validation"][first_score]["values"]
        known = {name: value for name, value in zip(by_run, values, strict=True) if value is not None}
        if known:
            choose = max if higher_is_better(first_score) else min
            scores["best"] = choose(known, key=known.__getitem__)
    if study.kind == "folds":
        scores["held_out"] = _score_held_out(study)
    return scores


def describe_spread(intervals: Sequence[Mapping[str, float | None]]) -> Numbers:
    """Describe the values of one score over several runs.

    Args:
        intervals: of each run, "value", "low" and "high".

    Returns:
        `mean`, `sd` (of single runs, with n - 1), `low` and `high` (95 % interval of the mean, by Student's t),
        `values`, and `rows` (half the mean width of the runs' own intervals over rows); None where a number is not
        defined.

    Example:
        >>> found = describe_spread([{"value": 0.8, "low": 0.7, "high": 0.9}, {"value": 0.9, "low": 0.8, "high": 1.0}])
        >>> round(found["mean"], 3), round(found["sd"], 3), round(found["rows"], 3)
        (0.85, 0.071, 0.1)
    """
    from scipy.stats import t

    values = [interval["value"] for interval in intervals]
    known = [value for value in values if value is not None]
    widths = [
        (high - low) / 2
        for interval in intervals
        if (high := interval["high"]) is not None and (low := interval["low"]) is not None
    ]
    if len(known) < len(values):
        return {"mean": None, "sd": None, "low": None, "high": None, "rows": None, "values": values}
    mean, sd = float(np.mean(known)), float(np.std(known, ddof=1))
    half = float(t.ppf(0.975, len(known) - 1)) * sd / math.sqrt(len(known))
    rows = float(np.mean(widths)) if len(widths) == len(values) else None
    return {"mean": mean, "sd": sd, "low": mean - half, "high": mean + half, "rows": rows, "values": values}


def _score_held_out(study: Study) -> Numbers:
    """Score every row once, by the run that did not learn from it, and store these predictions."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    tables = [pq.read_table(study.study_dir / run.name / PREDICTIONS_FILE) for run in study.plan]
    table = pa.concat_tables(
        [table.filter(pc.equal(table["split"], "validation")) for table in tables], promote_options="default"
    )
    pq.write_table(table, study.study_dir / PREDICTIONS_FILE)
    task, recipe = study.task, study.recipe
    predictions, targets = task.restored(table.select(["label", *_PREDICTED & set(table.column_names)]).to_pydict())
    known = task.has_target(targets)
    groups = np.asarray(table["group"].to_pylist()) if "group" in table.column_names else None
    return score_with_intervals(
        task.tune(predictions[known], targets[known]),
        predictions,
        targets,
        recipe.evaluate.scores or [],
        confidence=recipe.evaluate.confidence,
        seed=recipe.train.seed,
        groups=groups,
    )


_PREDICTED = {"prediction", "probabilities"}


def average_weights(study: Study, source: Any, progress: Report | None = None) -> Run:
    """Average the weights of all runs, and score that model as a run of its own.

    Args:
        study: all of whose runs are finished; their heads began alike.
        source: of the training rows where they are in memory; None takes it from the recipe.
        progress: gets what is done now.

    Source: Wortsman et al. 2022, Model soups: averaging weights of multiple fine-tuned models.
    """
    folder = study.study_dir / AVERAGE_DIR
    if (folder / CARD_FILE).exists():
        return Run(folder)
    if folder.exists():
        shutil.rmtree(folder)  # of a killed process
    values = {**study.plan[0].values, "output.run": str(folder), "train.best": "last"}
    plan = prepare_plan(source, recipe_file=study.study_dir / RECIPE_FILE, values=values, progress=progress)
    try:
        models = [run.run_dir / MODEL_DIR for run in study.runs]
        plan.loaded.model.load_state_dict(_mean_of(models), strict=False)
        writer = RunWriter(plan, plan.loaded.model, plan.fast.optimizer)
        with contextlib.closing(writer):
            writer.open()
            words = f"the mean of the weights of {len(models)} runs: {', '.join(run.name for run in study.plan)}"
            writer.log(StopRecord(plan.total_steps, "done", words, 0.0))
        write_results(plan, progress)
    finally:
        plan.fast.undo()
    return Run(folder)


def _mean_of(folders: Sequence[Path]) -> dict[str, Any]:
    """Average the parameters of saved models in float64; whole numbers (positions) are those of the first."""
    from safetensors.torch import load_file

    total: dict[str, Any] = {}
    for folder in folders:
        for path in sorted(folder.glob("*.safetensors")):
            for name, tensor in load_file(path).items():
                value = tensor.double() if tensor.is_floating_point() else tensor
                total[name] = value if name not in total or not tensor.is_floating_point() else total[name] + value
    return {
        name: (value / len(folders)).float() if value.is_floating_point() else value for name, value in total.items()
    }


def finish_study(study: Study, source: Any = None, progress: Report | None = None) -> Numbers:
    """Put the runs together, keep the models that are to stay, and write `scores.json`; only then is it finished.

    Args:
        study: all of whose runs are finished.
        source: of the training rows where they are in memory.
        progress: gets what is done now.
    """
    scores = summarise(study, progress)
    if study.keep_models == "average":
        averaged = average_weights(study, source, progress).scores
        scores["average"] = {split: averaged[split] for split in ("test", "validation") if split in averaged}
    kept = {"all": None, "best": scores.get("best"), "average": AVERAGE_DIR}[study.keep_models]
    if kept is not None:
        for run in study.plan:
            if run.name != kept:
                for name in (MODEL_DIR, CHECKPOINTS_DIR):
                    shutil.rmtree(study.study_dir / run.name / name, ignore_errors=True)
    write_json(study.study_dir / SCORES_FILE, scores)
    return scores
