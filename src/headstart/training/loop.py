"""The training loop: a generator of records. Its annotated pseudo-code is `docs/loop.md`.

May import layers 0 to 2. Front ends observe by iterating and ask through `requests` ("stop", "end", "save",
"evaluate"); leaving the iteration stops without saving. One step is one optimizer update:

    rows of update n -> micro-batches -> sum of losses / targets of the update -> gradients -> clip -> optimizer
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from typing import Literal

import numpy as np
import torch

from headstart.errors import CheckpointError, ProcessLostError
from headstart.models.walk import names_of
from headstart.runlog import CheckpointRecord, EvaluationRecord, Record, StepRecord, StopRecord, WarningRecord
from headstart.training.clock import Clock
from headstart.training.device import Device
from headstart.training.intervals import Progress, epochs_of, is_due, is_evaluation_due, progress_of
from headstart.training.memory import is_out_of_memory
from headstart.training.non_finite import describe_non_finite, roll_back, what_happens
from headstart.training.schedules import set_learning_rate
from headstart.training.state import LoopParts, LoopSettings, TrainState, UpdatePlan
from headstart.training.update import compute_gradients, make_update
from headstart.training.watched_scores import note_scores

__all__ = ["train"]

StopReason = Literal["done", "requested", "early_stopping", "time_limit"]
_REQUESTS = ("stop", "end", "save", "evaluate")


def train(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    plan: UpdatePlan,
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
        requests: words that front ends put in: "stop" finishes the step, saves and ends; "end" does so without saving;
            "save" and "evaluate" are heard again after each of these records.

    Yields:
        `StepRecord`, `EvaluationRecord`, `CheckpointRecord`, `WarningRecord`, and last one `StopRecord`.

    Raises:
        TrainingError: one row alone does not fit into memory.
        ProcessLostError: another process has ended or does not answer; saved before, as far as it could be.
    """
    device.apply_threads()
    clock = Clock()
    before = progress_of(state, plan, settings)
    if settings.on_non_finite == "rollback" and state.step == 0:
        yield from _save(state, parts, better=False)  # so that there is something to go back to
    reason = _reason_to_stop(state, settings, _hear(requests, state, parts))
    while reason is None:
        epoch, index = plan.locate(state.step)
        rows = np.concatenate(plan.updates(epoch)[index])
        rate = optimizer.param_groups[0]["lr"]
        if settings.learning_rate:
            rate = settings.learning_rate(state.step) * state.rate_factor
            set_learning_rate(optimizer, rate)
        gradients = None
        if state.step in state.skipped_steps:
            message = "the update that was not finite is passed over"
            yield WarningRecord(state.step, "non_finite", message, parts.name_rows(rows))
        else:
            if not all(module.training for module in names_of(model)):
                model.train()
            parts.hooks.step_begins(state.step)
            try:
                gradients, warnings = compute_gradients(
                    model, optimizer, plan.updates(epoch)[index], parts, settings, device, state
                )
            except ProcessLostError as error:
                # Nothing of this step has happened yet: the parameters are those of the step before.
                optimizer.zero_grad(set_to_none=True)
                yield from _end_without(error, state, parts, is_whole=True)
                raise
            yield from warnings
            if gradients.is_finite:
                parts.hooks.before_optimizer(state.step)
                make_update(optimizer, state.step)
                parts.hooks.after_optimizer(state.step)
                parts.hooks.update_made(state.step)
            else:
                what = what_happens(settings, state, parts, gradients)
                yield describe_non_finite(gradients, rows, what, state, parts)
                if what == "stop":
                    message = f"loss {gradients.loss}, gradient norm {gradients.gradient_norm}; the update was not made"
                    yield StopRecord(state.step, "non_finite", message, state.seconds)
                    return
            optimizer.zero_grad(set_to_none=True)
            if not gradients.is_finite and what == "rollback":
                roll_back(state, parts)
                before = progress_of(state, plan, settings)
                continue
        state.step += 1
        seconds = clock.lap()
        state.seconds += seconds
        if gradients is not None:
            yield StepRecord(
                step=state.step,
                epoch=epochs_of(state, plan),
                loss=gradients.loss,
                learning_rate=rate,
                grad_norm=gradients.gradient_norm,
                rows=len(rows),
                tokens=plan.num_tokens(rows),
                seconds=seconds,
            )
        with clock.stopped():
            reason, before = yield from _serve(requests, state, plan, parts, settings, before)
    yield StopRecord(state.step, reason, _reason_in_words(reason, state, settings), state.seconds)


def _serve(
    requests: set[str],
    state: TrainState,
    plan: UpdatePlan,
    parts: LoopParts,
    settings: LoopSettings,
    before: Progress,
) -> Generator[Record, None, tuple[StopReason | None, Progress]]:
    """Evaluate and save after a step, until nothing is due and no process asks for more.

    Returns:
        Why training ends, or None, and how far it is.
    """
    evaluates, saves, is_saved = is_evaluation_due(state, plan, settings, before), False, False
    now, better = None, False
    while True:
        try:
            heard = _hear(requests, state, parts)
            requests -= heard & {"save", "evaluate"}
            if now is None:  # the clocks of all processes agree only now
                evaluates, now = is_evaluation_due(state, plan, settings, before), progress_of(state, plan, settings)
                saves = is_due(settings.save_every, before, now)
            saves |= "save" in heard
            if evaluates or "evaluate" in heard:
                evaluation = _evaluate(state, epochs_of(state, plan), parts, settings)
                evaluates, better = False, isinstance(evaluation, EvaluationRecord) and evaluation.best
                saves |= better
                yield evaluation
                continue  # an evaluation may take long, and whoever reads its record may ask for something
        except ProcessLostError as error:
            yield from _end_without(error, state, parts, is_whole=not evaluates)
            raise
        reason = _reason_to_stop(state, settings, heard)
        if not saves and (reason is None or is_saved or "end" in heard):
            return reason, now
        yield from _save(state, parts, better)
        saves, is_saved = False, True


def _end_without(error: ProcessLostError, state: TrainState, parts: LoopParts, *, is_whole: bool) -> Iterator[Record]:
    """Save what can be gone on from, once another process is lost.

    After a step whose evaluation is due but was not made, that is the checkpoint before; and always where the lost
    process takes a part of the model with it.
    """
    if is_whole and not parts.processes.shards:
        yield from _save(state, parts, better=False)
    yield StopRecord(state.step, "process_lost", error.found, state.seconds)


def _hear(requests: set[str], state: TrainState, parts: LoopParts) -> set[str]:
    """Give what was asked for in any process, and bring the clocks together: all must decide alike."""
    *asked, seconds = parts.processes.add(
        [*(word in requests for word in _REQUESTS), state.seconds if parts.processes.rank == 0 else 0.0]
    )
    state.seconds = seconds
    return {word for word, number in zip(_REQUESTS, asked, strict=True) if number}


def _reason_to_stop(state: TrainState, settings: LoopSettings, heard: set[str]) -> StopReason | None:
    """Decide from the state alone (a request apart), so that a run resumed after its last step does not go on."""
    if state.step >= settings.total_steps:
        return "done"
    if settings.patience is not None and state.evaluations_without_better >= settings.patience:
        return "early_stopping"
    if state.seconds >= settings.time_limit_seconds:
        return "time_limit"
    return "requested" if heard & {"stop", "end"} else None


def _evaluate(
    state: TrainState, epoch: float, parts: LoopParts, settings: LoopSettings
) -> EvaluationRecord | WarningRecord:
    """Score the model as it is; an error in that is said, and costs no more than the scores."""
    started = time.perf_counter()
    try:
        scores = parts.evaluate()
    except ProcessLostError:
        raise
    except Exception as error:
        if settings.on_evaluation_error == "raise":
            raise
        message = f"the evaluation failed ({type(error).__name__}: {error}); training goes on without its scores"
        return WarningRecord(state.step, "evaluation", message, [])
    best = note_scores(state, settings, scores)
    return EvaluationRecord(state.step, epoch, "validation", scores, time.perf_counter() - started, best)


def _save(state: TrainState, parts: LoopParts, better: bool) -> Iterator[Record]:
    record = CheckpointRecord(state.step, f"checkpoints/step-{state.step:06d}", better)
    try:
        messages = parts.save(state, record)
    except Exception as error:
        if not isinstance(error, CheckpointError | OSError) and not is_out_of_memory(error):
            raise
        yield WarningRecord(state.step, "checkpoint", f"the checkpoint was not written: {error}", [])
        return
    yield record
    for message in messages:
        yield WarningRecord(state.step, "checkpoint", message, [])


def _reason_in_words(reason: StopReason, state: TrainState, settings: LoopSettings) -> str:
    return {
        "done": f"all {settings.total_steps} steps made",
        "requested": f"stopped on request after step {state.step} of {settings.total_steps}",
        "early_stopping": f"{settings.best} no better in {state.evaluations_without_better} evaluations",
        "time_limit": f"the time limit was reached after step {state.step} of {settings.total_steps}",
    }[reason]
