"""Carry out a plan: make the run folder, drive the loop, write every record, checkpoint and tracker.

May import layers 0 to 4, and `preparation`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headstart.durations import Duration, parse_duration
from headstart.errors import NonFiniteError, ProcessLostError, TrainingError
from headstart.metrics import higher_is_better
from headstart.models.forward_pass import explain_compiler, run_as_before, uncompiled
from headstart.prediction import predict_tokens
from headstart.preparation import Plan, process_timeout_seconds
from headstart.recipe import Recipe
from headstart.run_identity import identify
from headstart.run_writer import RunWriter, describe_update, shard_training, share_state, whole_state
from headstart.runlog import (
    NON_FINITE_DIR,
    RECIPE_FILE,
    CheckpointRecord,
    EvaluationRecord,
    Record,
    StepRecord,
    StopRecord,
    WarningRecord,
)
from headstart.training.allocator import keep_freed_memory
from headstart.training.averaged_weights import AveragedWeights
from headstart.training.device import is_joined, join_processes, open_store, own_rank
from headstart.training.launch import Workers, environment_of, in_environment, start_workers
from headstart.training.loop import train
from headstart.training.schedules import PlateauRule, learning_rate_factor, schedule_numbers
from headstart.training.state import Batch, LoopParts, LoopSettings, StepHooks, TrainState, UpdateGradients
from headstart.training.trackers import Trackers

__all__ = ["run_plan"]


def run_plan(plan: Plan) -> Iterator[Record]:
    """Train as planned, yielding every record after it was logged.

    The run folder is made here, or opened again where the plan resumes one: from its newest whole checkpoint, with the
    tail of the log that came after it moved to `log.discarded.jsonl`.

    Raises:
        CheckpointError: the folder is in use, or the data is not what the run was started with.
        NonFiniteError: a loss or gradient was not finite and the recipe says to stop.
        TrainingError: one row alone does not fit into memory.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(keep_freed_memory())
        model, optimizer = plan.loaded.model, plan.fast.optimizer
        stack.callback(plan.fast.undo)
        if plan.unfreezing is not None:
            stack.callback(plan.unfreezing.undo)
        if plan.recipe.train.ema is not None:
            plan.averages = AveragedWeights(model, plan.recipe.train.ema)
        stack.callback(run_as_before, model)
        writer = RunWriter(plan, model, optimizer) if own_rank() == 0 else None
        warnings: list[WarningRecord] = []
        if writer is not None:
            warnings = writer.open()
            stack.callback(writer.close)
        workers = _join_processes(plan, stack)
        plan.state = share_state(plan.processes, plan.state, model, optimizer, plan.averages)
        plan.batches.remember(**plan.processes.share(_place(plan) if writer is not None else None))
        whole_class = type(model)
        if plan.processes.shards:
            optimizer = shard_training(plan, model, optimizer)
        trackers = _open_trackers(plan, stack) if writer is not None else Trackers([], plan.run_dir, {})
        for warning in warnings:
            if writer is not None:
                writer.log(warning)
            yield warning
        records = train(
            model,
            optimizer,
            plan.batches,
            _loop_parts(plan, model, optimizer, writer),
            _settings(plan),
            device=plan.device,
            state=plan.state,
            requests=plan.requests,
        )
        try:
            for record in records:
                if isinstance(record, StopRecord):
                    trackers.flush()
                if not isinstance(record, CheckpointRecord):  # which stands in the log already; the stop comes last
                    yield from _pass_news_on(trackers, record.step, writer)
                if writer is not None:
                    writer.log(record)
                _track(trackers, record)
                if isinstance(record, StopRecord) and record.reason != "process_lost":
                    # Whoever ends first makes a launcher end the others, one of which may still be writing.
                    plan.processes.meet()
                yield record
                if isinstance(record, StopRecord) and record.reason == "non_finite":
                    raise _non_finite_error(plan, record)
                if isinstance(record, StopRecord) and record.reason == "requested":
                    trackers.close()  # scores may follow, or not: who asked to stop decides
                    plan.trackers = None
            if plan.processes.shards:
                whole = whole_class(plan.loaded.model.config)
                whole.load_state_dict(whole_state(model, optimizer)[0])
                plan.loaded = replace(plan.loaded, model=whole)
            if plan.averages is not None:
                plan.averages.put_into_model()
        except ProcessLostError as error:
            stack.callback(workers.end, at_once=True)
            raise _explain_lost_process(plan, error, workers) from error


def _place(plan: Plan) -> dict[str, int]:
    """Give the epoch of the next step and the step at which it began."""
    epoch, index = plan.batches.locate(plan.state.step)
    return {"epoch": epoch, "first_step": plan.state.step - index}


def _join_processes(plan: Plan, stack: contextlib.ExitStack) -> Workers:
    """Start the other processes where this one is to start them, and make sure that all train the same."""
    workers = Workers({})
    if plan.num_processes > 1 and not is_joined():
        store, port = open_store()
        stack.callback(lambda: store)  # lives as long as the run
        stack.enter_context(in_environment(environment_of(0, plan.num_processes, port)))
        workers = start_workers(plan.run_dir / RECIPE_FILE, plan.num_processes, port, debug=plan.debug)
        try:
            plan.processes = join_processes(
                plan.device, timeout_seconds=process_timeout_seconds(plan.recipe), for_one_run=True
            )
        except BaseException:
            workers.end(at_once=True)
            raise
        stack.callback(workers.end, at_once=False)
        plan.processes.announce("prepared")
    stack.callback(plan.processes.close)
    plan.run_dir = Path(plan.processes.share(str(plan.run_dir)))
    same = identify(plan.recipe, plan.data.fingerprints, plan.loaded) | {"derived": plan.derived}
    for rank, other in enumerate(plan.processes.gather(same)):
        for part, values in other.items():
            for name, value in values.items():
                if value != same[part].get(name):
                    raise TrainingError(
                        f"Process {plan.processes.rank} and process {rank} do not train the same: {part}, {name} is "
                        f"{same[part].get(name)} and {value}.",
                        "the same data, recipe, libraries and kind of machine for all.",
                        "Start all of them with the same command on machines that are alike.",
                    )
    plan.processes.reserve([value for value in plan.loaded.model.parameters() if value.requires_grad])
    return workers


def _explain_lost_process(plan: Plan, error: ProcessLostError, workers: Workers) -> ProcessLostError:
    return ProcessLostError(
        f"{error.found} {workers.describe_ended(error.ranks)}".strip(),
        error.expected,
        f"Go on from the last checkpoint: headstart train --resume --run {plan.run_dir} (also with another number of "
        "--processes).",
        ranks=error.ranks,
    )


def _non_finite_error(plan: Plan, record: StopRecord) -> NonFiniteError:
    return NonFiniteError(
        f"Step {record.step}: {record.message}.",
        "finite losses and gradients.",
        f"Its rows and micro-batches stand in {plan.run_dir / NON_FINITE_DIR}. Look at these rows; try a smaller "
        "optim.learning_rate, train.precision=fp32, or train.on_non_finite=rollback, which passes over this update.",
    )


def _loop_parts(
    plan: Plan, model: torch.nn.Module, optimizer: torch.optim.Optimizer, writer: RunWriter | None
) -> LoopParts:
    task, device = plan.data.task, plan.device
    split = plan.data.splits["train"]
    pad_token_id = int(plan.loaded.tokenizer.pad_token_id)

    def make_batch(rows: np.ndarray) -> Batch:
        batch = task.collate(split.encoded(), rows, split.targets, pad_token_id, split.weights)
        return device.place(batch)

    def micro_batch(model: torch.nn.Module, batch: Batch, num_targets: int) -> tuple[torch.Tensor, int]:
        with explain_compiler(model):
            outputs = task.run(model, batch, "train")
        return task.loss(outputs, batch) / num_targets, task.count(batch)

    def save(state: TrainState, record: CheckpointRecord) -> list[str]:
        if writer is None and not plan.processes.shards:
            return []
        tensors = whole_state(model, optimizer, trained_only=plan.loaded.adapted is not None)
        return writer.save(state, record, *tensors) if writer is not None else []

    def restore() -> TrainState:
        state = writer.restore() if writer is not None else TrainState()
        return share_state(plan.processes, state, model, optimizer, plan.averages)

    def examine(step: int, rows: np.ndarray, gradients: UpdateGradients) -> str:
        details = describe_update(plan, model, step, rows, gradients)
        return writer.keep_update(step, make_batch(rows), details) if writer is not None else ""

    def evaluate() -> dict[str, float]:
        with plan.averages.in_model() if plan.averages is not None else contextlib.nullcontext():
            return _evaluate(plan, model)

    def step_begins(step: int) -> None:
        if plan.unfreezing is not None:
            plan.unfreezing.apply(step)

    def update_made(step: int) -> None:
        if plan.averages is not None:
            plan.averages.update()

    return LoopParts(
        make_batch=make_batch,
        count=task.count,
        micro_batch=micro_batch,
        evaluate=evaluate,
        save=save,
        restore=restore,
        examine=examine,
        name_rows=lambda rows: split.rows[rows].tolist(),
        processes=plan.processes,
        hooks=StepHooks(step_begins=step_begins, update_made=update_made),
    )


def _settings(plan: Plan) -> LoopSettings:
    recipe = plan.recipe
    best = None if recipe.train.best in (None, "last") else recipe.train.best
    limit = parse_duration(recipe.train.time_limit) if recipe.train.time_limit is not None else None

    numbers: dict[str, Any] = schedule_numbers(recipe.optim)

    def learning_rate(step: int) -> float:
        factor = learning_rate_factor(
            step,
            total_steps=plan.total_steps,
            warmup_steps=plan.warmup_steps,
            schedule=recipe.optim.schedule,
            **numbers,
        )
        return recipe.optim.peak_learning_rate * factor

    def interval(value: int | str | None) -> Duration | None:
        return parse_duration(value) if value is not None else None

    return LoopSettings(
        total_steps=plan.total_steps,
        seed=recipe.train.seed,
        learning_rate=learning_rate,
        max_grad_norm=recipe.optim.max_grad_norm,
        evaluate_every=interval(recipe.train.evaluate_every),
        save_every=interval(recipe.train.save_every),
        best=best,
        higher_is_better=best is None or higher_is_better(best),
        patience=recipe.train.patience,
        on_non_finite=recipe.train.on_non_finite,
        time_limit_seconds=limit.number * 60 if limit is not None else math.inf,
        plateau=_plateau_rule(recipe, best),
    )


def _plateau_rule(recipe: Recipe, best: str | None) -> PlateauRule | None:
    optim = recipe.optim
    if optim.plateau_factor is None or optim.plateau_patience is None or best is None:
        return None
    return PlateauRule(best, higher_is_better(best), optim.plateau_factor, optim.plateau_patience)


def _evaluate(plan: Plan, model: torch.nn.Module) -> dict[str, float]:
    split = plan.data.splits["validation"]
    with uncompiled(model):
        predictions = predict_tokens(
            model,
            plan.data.task,
            split.encoded(),
            pad_token_id=int(plan.loaded.tokenizer.pad_token_id),
            batch_size=plan.recipe.evaluate.batch_size,
            device=plan.device,
            processes=plan.processes,
        )
    predictions, targets = predictions[split.has_target], split.targets[split.has_target]
    best = plan.recipe.train.best
    names = [*plan.scores, *([best] if best not in (None, "last", *plan.scores) else [])]
    # As the final scores: with what is chosen on these rows, such as thresholds.
    return plan.data.task.tune(predictions, targets).score(predictions, targets, [str(name) for name in names])


def _open_trackers(plan: Plan, stack: contextlib.ExitStack) -> Trackers:
    """Open the trackers. Where training comes to its end they stay open: the final scores follow."""
    trackers = plan.trackers = Trackers(plan.recipe.output.log_to, plan.run_dir, plan.recipe.model_dump())

    def close(kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            trackers.close()

    stack.push(close)
    return trackers


def _pass_news_on(trackers: Trackers, step: int, writer: RunWriter | None) -> Iterator[WarningRecord]:
    for news in trackers.news():
        warning = WarningRecord(step, "tracker", news, [])
        if writer is not None:
            writer.log(warning)
        yield warning


def _track(trackers: Trackers, record: Record) -> None:
    if isinstance(record, StepRecord):
        values = {
            "train/loss": record.loss,
            "train/learning_rate": record.learning_rate,
            "train/grad_norm": record.grad_norm,
            "train/epoch": record.epoch,
            "train/rows_per_second": record.rows / record.seconds,
            "train/tokens_per_second": record.tokens / record.seconds,
        }
        trackers.log(values, record.step)
    elif isinstance(record, EvaluationRecord):
        trackers.log({f"{record.split}/{name}": value for name, value in record.scores.items()}, record.step)
