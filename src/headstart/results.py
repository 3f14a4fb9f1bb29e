"""The end of a run: the chosen weights as a model folder, final scores, baselines, predictions and the model card.

May import layers 0 to 4, and `preparation`.

Final scores are computed from the reloaded `model/`, the way `predict` will; the test split is touched here and
nowhere before.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from headstart.baselines import fit_baselines
from headstart.errors import CheckpointError, HeadstartError, HeadstartWarning
from headstart.model_card import write_model_card
from headstart.models.head import outputs_in_units
from headstart.models.load import load_saved_classifier, save_classifier
from headstart.models.lora import save_adapters
from headstart.prediction import predict_tokens
from headstart.preparation import Plan
from headstart.reading import Split
from headstart.records import Report
from headstart.run_files import sync_files, write_json, write_text
from headstart.run_identity import compare_identity
from headstart.run_writer import write_task
from headstart.runlog import (
    ADAPTER_DIR,
    CARD_FILE,
    CHECKPOINTS_DIR,
    MODEL_DIR,
    PREDICTIONS_FILE,
    SCORES_FILE,
    RunLock,
)
from headstart.scoring import prediction_table, score_with_intervals
from headstart.tasks import Regression, Task
from headstart.training.averaged_weights import averages_of
from headstart.training.checkpoint import load_checkpoint
from headstart.training.device import is_joined
from headstart.training.trackers import Trackers

__all__ = ["write_results"]

Scores = dict[str, dict[str, float | None]]


def write_results(plan: Plan, progress: Report | None = None, tell: Callable[[str], None] | None = None) -> None:
    """Save the model, score it, and write everything that a run folder holds at the end.

    Of several processes, number 0 does this, with the machine to itself; the others wait for it.

    Args:
        plan: of a training that ended.
        progress: gets what is done now, and how many of the rows are done.
        tell: gets what the trackers say that failed since the last record; None warns of it.
    """
    if plan.processes.rank:
        plan.processes.wait_for("finished")
        return
    say: Report = progress or (lambda text, done, total: None)
    try:
        _write_results(plan, say, tell or _warn)
    except (OSError, SafetensorError) as error:
        if isinstance(error, HeadstartError):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise CheckpointError(
            f"{plan.run_dir}: the results could not be written: {reason}.",
            "room for the model and its predictions, in a folder that you may write to.",
            f"Mend that, then go on: headstart train --resume --run {plan.run_dir} (no step is made again).",
        ) from error
    if is_joined():
        plan.processes.announce("finished", until_seen=True)


def _warn(message: str) -> None:
    warnings.warn(message, HeadstartWarning, stacklevel=6)  # of whoever finishes the run


def _write_results(plan: Plan, say: Report, tell: Callable[[str], None]) -> None:
    with RunLock(plan.run_dir):
        say("saving the model", 0, 0)
        task = _save_model(plan)
        scored = {name: split for name, split in plan.data.splits.items() if name != "train" and len(split.rows)}
        predictions = _predict(plan, task, scored, say)
        task = _tuned(task, scored, predictions)
        write_task(plan, task)
        scores: dict[str, Any] = {
            name: _score(plan, task, split, predictions[name]) for name, split in scored.items() if split.is_labelled
        }
        if plan.recipe.evaluate.baselines:
            say("scoring the baselines", 0, 0)
            scores["baselines"] = _score_baselines(plan, scored)
        _write_predictions(plan, task, scored, predictions)
        write_json(plan.run_dir / SCORES_FILE, scores)
        _track_scores(plan, scores, tell)
        card = write_model_card(plan.recipe, plan.derived, plan.summary, scores, task)
        # The card says that the run is finished: what it speaks of is on the disk before.
        folders = [MODEL_DIR, *([ADAPTER_DIR] if plan.loaded.adapted is not None else [])]
        sync_files(
            plan.run_dir / PREDICTIONS_FILE, *(path for name in folders for path in (plan.run_dir / name).iterdir())
        )
        write_text(plan.run_dir / CARD_FILE, card)


def _track_scores(plan: Plan, scores: Mapping[str, Any], tell: Callable[[str], None]) -> None:
    """Give the trackers the final scores with their intervals, and let them go."""
    # Of a training that was asked to stop they are closed; the same runs go on.
    trackers = plan.trackers or Trackers(plan.recipe.output.log_to, plan.run_dir, plan.recipe.model_dump())
    plan.trackers = None
    trackers.log(_flat_scores(scores), plan.state.step)
    trackers.close()
    for news in trackers.news():
        tell(news)


def _flat_scores(scores: Mapping[str, Any], prefix: str = "final/") -> dict[str, float]:
    """Write `scores.json` as one flat dict: final/test/accuracy, final/test/accuracy/low and .../high.

    Example:
        >>> _flat_scores({"test": {"f1": {"value": 0.5, "low": 0.4, "high": None}}})
        {'final/test/f1': 0.5, 'final/test/f1/low': 0.4}
    """
    flat: dict[str, float] = {}
    for name, value in scores.items():
        if isinstance(value, Mapping):
            flat |= _flat_scores(value, f"{prefix}{name}/")
        elif value is not None:
            flat[prefix.rstrip("/") if name == "value" else f"{prefix}{name}"] = float(value)
    return flat


def _save_model(plan: Plan) -> Task:
    """Write `model/`, and `adapter/` beside it, from the best checkpoint, or the last step where none was chosen.

    Returns:
        The task as that model does it: one that learned numbers answers in their units, where its last layer can.
    """
    model, state = plan.loaded.model, plan.state
    if plan.recipe.train.best != "last" and state.best_step not in (None, state.step):
        folder = plan.run_dir / CHECKPOINTS_DIR / f"step-{state.best_step:06d}"
        if not folder.is_dir():
            raise CheckpointError(
                f"{folder}: the best checkpoint is gone.",
                "the checkpoint of the best evaluation.",
                "Restore it, or train again with train.best=last.",
            )
        best = load_checkpoint(folder)
        if best.state["identity"] not in plan.identities:
            compare_identity(best.state["identity"], plan.identities[0], allowed=(), run=str(folder))
        model.load_state_dict({**best.model, **averages_of(best.average)}, strict=False)
    task = plan.data.task
    with contextlib.ExitStack() as stack:
        if isinstance(task, Regression) and stack.enter_context(
            outputs_in_units(model.eval(), task.center, task.scale)
        ):
            task = task.as_outputs()
        if plan.loaded.adapted is not None:
            _write_folder(plan.run_dir, ADAPTER_DIR, functools.partial(save_adapters, plan.loaded.adapted))
        _write_folder(plan.run_dir, MODEL_DIR, functools.partial(save_classifier, plan.loaded))
    return task


def _write_folder(run_dir: Path, name: str, fill: Callable[[Path], None]) -> None:
    """Write a folder of a run, so that under its name there is a whole one or none."""
    temporary = run_dir / f".{name}.tmp"
    if temporary.exists():
        shutil.rmtree(temporary)  # of a killed process
    temporary.mkdir()
    try:
        fill(temporary)
        final, former = run_dir / name, run_dir / f".{name}.former"
        if former.exists():
            shutil.rmtree(former)
        if final.exists():
            final.rename(former)  # a kill while it is removed leaves no half of it under its name
        temporary.rename(final)
        if former.exists():
            shutil.rmtree(former)
    except BaseException:
        with contextlib.suppress(OSError):
            shutil.rmtree(temporary)
        raise


def _tuned(task: Task, splits: dict[str, Split], predictions: dict[str, np.ndarray]) -> Task:
    """Choose what is left to choose on the validation rows; without any the task stays as it is."""
    validation = splits.get("validation")
    if validation is None or not validation.is_labelled:
        return task
    return task.tune(predictions["validation"][validation.has_target], validation.targets[validation.has_target])


def _predict(plan: Plan, task: Task, splits: dict[str, Split], say: Report) -> dict[str, np.ndarray]:
    saved = load_saved_classifier(plan.run_dir / MODEL_DIR)
    model = saved.model.to(plan.device.torch_device)  # type: ignore[arg-type]
    return {
        name: predict_tokens(
            model,
            task,
            split.encoded(),
            pad_token_id=int(plan.loaded.tokenizer.pad_token_id),
            batch_size=plan.recipe.evaluate.batch_size,
            device=plan.device,
            progress=functools.partial(say, f"scoring the saved model on {name}", total=len(split.rows)),
        )
        for name, split in splits.items()
    }


def _score(plan: Plan, task: Task, split: Split, predictions: np.ndarray) -> Scores:
    return score_with_intervals(
        task,
        predictions,
        split.targets,
        plan.scores,
        confidence=plan.recipe.evaluate.confidence,
        seed=plan.recipe.train.seed,
        groups=split.group_numbers,
    )


def _score_baselines(plan: Plan, splits: dict[str, Split]) -> dict[str, dict[str, Scores]]:
    task, train = plan.data.task, plan.data.splits["train"]
    labelled = {name: split for name, split in splits.items() if split.is_labelled}
    if not labelled:
        return {}
    fitted = fit_baselines(task, *_texts(plan, train), train.targets, train.weights, seed=plan.recipe.train.seed)
    scores: dict[str, dict[str, Scores]] = {}
    for baseline, model in fitted.items():
        predictions = {name: model.predict(*_texts(plan, split)) for name, split in labelled.items()}
        own = _tuned(task, labelled, predictions)
        scores[baseline] = {name: _score(plan, own, split, predictions[name]) for name, split in labelled.items()}
    return scores


def _texts(plan: Plan, split: Split) -> tuple[list[str], list[str] | None]:
    task = plan.data.task
    texts = list(split.table[task.text])
    return texts, list(split.table[task.pair]) if task.pair is not None else None


def _write_predictions(plan: Plan, task: Task, splits: dict[str, Split], predictions: dict[str, np.ndarray]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = [
        prediction_table(task, name, split.rows, split.targets, predictions[name], split.groups)
        for name, split in splits.items()
    ]
    table = pa.concat_tables(tables, promote_options="default") if tables else task.schema().empty_table()
    temporary = plan.run_dir / f".{PREDICTIONS_FILE}.tmp"
    pq.write_table(table, temporary)
    temporary.replace(plan.run_dir / PREDICTIONS_FILE)
