"""The training loop: a generator of records. Its annotated pseudo-code is `docs/loop.md`.

May import layers 0 to 2. Front ends observe by iterating and ask through `requests` ("stop", "save", "evaluate");
leaving the iteration stops without saving. One step is one optimizer update:

    rows of update n -> micro-batches -> sum of losses / targets of the update -> gradients -> clip -> optimizer
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Literal

import numpy as np
import torch

from headstart.data.batches import BatchPlan
from headstart.errors import CheckpointError, format_rows
from headstart.recipe import Duration
from headstart.runlog import CheckpointRecord, EvaluationRecord, Record, StepRecord, StopRecord, WarningRecord
from headstart.training.device import Device
from headstart.training.state import LoopParts, LoopSettings, TrainState
from headstart.training.update import compute_gradients

__all__ = ["is_due", "train"]

StopReason = Literal["done", "requested", "early_stopping", "time_limit"]


def is_due(every: Duration | None, before: Mapping[str, float | Fraction], now: Mapping[str, float | Fraction]) -> bool:
    """Say whether a multiple of the interval lies after `before` and not after `now`.

    Args:
        every: the interval; None is never due.
        before: progress in each unit ("steps", "epochs", "%", "minutes") after the step before.
        now: progress after this step.

    Example:
        >>> is_due(Duration(2, "epochs"), {"epochs": Fraction(19, 10)}, {"epochs": Fraction(2)})
        True
    """
    if every is None:
        return False
    length = Fraction(every.number).limit_denominator(10**6)
    return math.floor(Fraction(now[every.unit]) / length) > math.floor(Fraction(before[every.unit]) / length)


def train(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    plan: BatchPlan,
    parts: LoopParts,
    settings: LoopSettings,
    *,
    device: Device,
    state: TrainState,
    requests: set[str],
) -> Iterator[Record]:
    """Train from `state.step` to the last step, yielding a record of every event.

    Args:
        model: in the state that belongs to `state`; changed in place.
        optimizer: over its parameters, taken as it is.
        plan: which rows make up which update; the plan of any step is known, so resuming is a seek.
        parts: the functions that make batches, losses, scores and checkpoints.
        settings: intervals, limits and choices.
        device: where to compute, and the precision of the forward pass.
        state: changed in place.
        requests: words that front ends put in: "stop" finishes the step, saves and ends; "save"; "evaluate".

    Yields:
        `StepRecord`, `EvaluationRecord`, `CheckpointRecord`, `WarningRecord`, and last one `StopRecord`.

    Raises:
        TrainingError: one row alone does not fit into memory.
    """
    device.apply_threads()
    before = _progress(state, plan, settings)
    mark, apart = time.perf_counter(), 0.0
    reason = _reason_to_stop(state, settings, requests)
    while reason is None:
        epoch, index = plan.locate(state.step)
        update = plan.updates(epoch)[index]
        rate = settings.learning_rate(state.step) if settings.learning_rate else optimizer.param_groups[0]["lr"]
        if settings.learning_rate:
            for group in optimizer.param_groups:
                group["lr"] = rate
        model.train()
        parts.hooks.step_begins(state.step)
        loss, gradient_norm, warnings = compute_gradients(
            model, optimizer, update, parts, settings, device, state
        )
        yield from warnings
        rows = np.concatenate(update)
        if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
            yield _non_finite(state.step, loss, gradient_norm, rows, settings)
            if settings.on_non_finite == "stop":
                message = f"loss {loss}, gradient norm {gradient_norm}; the update was not made"
                yield StopRecord(state.step, "non_finite", message, state.seconds)
                return
        else:
            parts.hooks.before_optimizer(state.step)
            optimizer.step()
            parts.hooks.after_optimizer(state.step)
        optimizer.zero_grad(set_to_none=True)
        state.step += 1
        seconds = time.perf_counter() - mark - apart
        mark, apart, state.seconds = time.perf_counter(), 0.0, state.seconds + seconds
        now = _progress(state, plan, settings)
        yield StepRecord(
            step=state.step,
            epoch=round(float(now["epochs"]), 6),
            loss=loss,
            learning_rate=rate,
            grad_norm=gradient_norm,
            rows=len(rows),
            tokens=int(plan.lengths[rows].sum()),
            seconds=seconds,
        )
        pause = time.perf_counter()
        last = state.step == settings.total_steps
        better = False
        evaluates_last = last and settings.evaluate_every is not None
        if evaluates_last or "evaluate" in requests or is_due(settings.evaluate_every, before, now):
            record = _evaluate(state, float(now["epochs"]), parts, settings)
            better = record.best
            yield record
        # Asked once a step: a request that comes while saving is answered, and saved, after the next one.
        reason = _reason_to_stop(state, settings, requests)
        if reason is not None or better or "save" in requests or is_due(settings.save_every, before, now):
            yield from _save(state, parts, better)
        requests -= {"save", "evaluate"}
        apart += time.perf_counter() - pause
        before = now
    yield StopRecord(state.step, reason, _reason_in_words(reason, state, settings), state.seconds)


def _reason_to_stop(state: TrainState, settings: LoopSettings, requests: set[str]) -> StopReason | None:
    """Decide from the state alone (a request apart), so that a run resumed after its last step does not go on."""
    if state.step >= settings.total_steps:
        return "done"
    if settings.patience is not None and state.evaluations_without_better >= settings.patience:
        return "early_stopping"
    if state.seconds >= settings.time_limit_seconds:
        return "time_limit"
    return "requested" if "stop" in requests else None


def _progress(state: TrainState, plan: BatchPlan, settings: LoopSettings) -> dict[str, float | Fraction]:
    epoch, index = plan.locate(state.step)
    return {
        "steps": state.step,
        "epochs": epoch + Fraction(index, plan.steps_in_epoch(epoch)),
        "%": Fraction(100 * state.step, settings.total_steps),
        "minutes": state.seconds / 60,
    }


def _evaluate(state: TrainState, epoch: float, parts: LoopParts, settings: LoopSettings) -> EvaluationRecord:
    started = time.perf_counter()
    scores = parts.evaluate()
    best = False
    if settings.best is not None:
        score, former = scores[settings.best], state.best_score
        # A score that is not a number is never better, and never stays the one to beat.
        best = not math.isnan(score) and (
            former is None or (score > former if settings.higher_is_better else score < former)
        )
        state.evaluations_without_better = 0 if best else state.evaluations_without_better + 1
        if best:
            state.best_step, state.best_score = state.step, score
    return EvaluationRecord(state.step, round(epoch, 6), "validation", scores, time.perf_counter() - started, best)


def _save(state: TrainState, parts: LoopParts, better: bool) -> Iterator[Record]:
    record = CheckpointRecord(state.step, f"checkpoints/step-{state.step:06d}", better)
    try:
        messages = parts.save(state, record)
    except (CheckpointError, OSError) as error:
        yield WarningRecord(state.step, "checkpoint", f"the checkpoint was not written: {error}", [])
        return
    yield record
    for message in messages:
        yield WarningRecord(state.step, "checkpoint", message, [])


def _non_finite(
    step: int, loss: float, gradient_norm: float, rows: np.ndarray, settings: LoopSettings
) -> WarningRecord:
    what = "the run stops" if settings.on_non_finite == "stop" else "the update is skipped"
    message = (
        f"loss {loss}, gradient norm {gradient_norm}: not finite, {what}; its rows are {format_rows(rows.tolist())}"
    )
    return WarningRecord(step, "non_finite", message, rows.tolist())


def _reason_in_words(reason: StopReason, state: TrainState, settings: LoopSettings) -> str:
    return {
        "done": f"all {settings.total_steps} steps made",
        "requested": f"stopped on request after step {state.step} of {settings.total_steps}",
        "early_stopping": f"{settings.best} no better in {state.evaluations_without_better} evaluations",
        "time_limit": f"the time limit was reached after step {state.step} of {settings.total_steps}",
    }[reason]
