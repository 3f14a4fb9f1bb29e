"""Carry out a plan: make the run folder, drive the loop, write every record, checkpoint and tracker.

May import layers 0 to 4, and `preparation`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import asdict

import numpy as np
import torch

from headstart.errors import CheckpointError, NonFiniteError
from headstart.metrics import higher_is_better
from headstart.prediction import predict_tokens
from headstart.preparation import Plan
from headstart.recipe import Duration, parse_duration
from headstart.run_files import read_json, write_json, write_text
from headstart.runlog import (
    DATA_FILE,
    ENVIRONMENT_FILE,
    RECIPE_FILE,
    TASK_FILE,
    CheckpointRecord,
    EvaluationRecord,
    Record,
    RunLock,
    RunLog,
    StepRecord,
    StopRecord,
    WarningRecord,
    new_run_dir,
)
from headstart.training.allocator import keep_freed_memory
from headstart.training.checkpoint import (
    LoadedCheckpoint,
    newest_checkpoint,
    optimizer_from_tensors,
    optimizer_to_tensors,
    prune_checkpoints,
    save_checkpoint,
)
from headstart.training.device import Trackers, describe_environment
from headstart.training.loop import train
from headstart.training.optim import build_optimizer, learning_rate_factor
from headstart.training.state import Batch, LoopParts, LoopSettings, TrainState

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
    if not plan.resume:
        _make_run_dir(plan)
    with contextlib.ExitStack() as stack:
        stack.enter_context(RunLock(plan.run_dir))
        stack.enter_context(keep_freed_memory())
        if plan.resume:
            _check_same_data(plan)
        else:
            _write_run_files(plan)
        model = plan.loaded.model.to(plan.device.torch_device)  # type: ignore[arg-type]
        optimizer = build_optimizer(model, plan.recipe.optim)
        log = RunLog(plan.run_dir)
        stack.callback(log.close)
        plan.state, warnings = _restore(plan, model, optimizer, log)
        trackers = Trackers(plan.recipe.output.log_to, plan.run_dir, plan.recipe.model_dump())
        stack.callback(trackers.close)
        for warning in warnings:
            log.append(warning)
            yield warning
        parts = _loop_parts(plan, model, optimizer, log)
        records = train(
            model,
            optimizer,
            plan.batches,
            parts,
            _settings(plan),
            device=plan.device,
            state=plan.state,
            requests=plan.requests,
        )
        for record in records:
            # A checkpoint's record is logged by _save, before the log's length goes into the checkpoint.
            if not isinstance(record, CheckpointRecord):
                log.append(record)
            _track(trackers, record)
            if isinstance(record, StopRecord):
                log.sync()
            yield record
            if isinstance(record, StopRecord) and record.reason == "non_finite":
                raise NonFiniteError(
                    f"Step {record.step}: {record.message}.",
                    "finite losses and gradients.",
                    f'The rows of this update stand in {plan.run_dir / "log.jsonl"} (record "warning"). Try a smaller '
                    "optim.learning_rate, train.precision=fp32, or train.on_non_finite=skip.",
                )


def _make_run_dir(plan: Plan) -> None:
    if plan.recipe.output.run is None:
        name, _, _ = plan.run_dir.name.rpartition("-")
        plan.run_dir = new_run_dir(plan.run_dir.parent, name)
    else:
        plan.run_dir.mkdir(parents=True, exist_ok=True)
    plan.recipe = plan.recipe.replace({"output.run": str(plan.run_dir)})
    plan.summary.run_dir = str(plan.run_dir)


def _write_run_files(plan: Plan) -> None:
    """Write what is known before the first step. The recipe comes last: where it stands, the others do too."""
    data = plan.data
    task = {**data.task.to_dict(), "max_length": plan.recipe.data.max_length}
    write_json(plan.run_dir / TASK_FILE, task)
    write_json(plan.run_dir / ENVIRONMENT_FILE, describe_environment(plan.device))
    write_json(
        plan.run_dir / DATA_FILE,
        {
            "source": data.source.name,
            "fingerprints": data.fingerprints,
            "splits": {
                name: {
                    "rows": len(split.rows),
                    "origin": split.origin,
                    "tokens": int(split.encoded().lengths.sum()),
                    "truncated_rows": int(split.encoded().num_truncated),
                    "lost_tokens": int(split.encoded().num_lost_tokens),
                }
                for name, split in data.splits.items()
            },
            "columns": {role: {"column": name, "reason": reason} for role, name, reason in plan.summary.columns},
            "task_reason": data.task_reason,
            "labels": dict(plan.summary.labels),
            "findings": [asdict(finding) for finding in data.findings],
            "notes": plan.summary.notes,
            "new_parameters": plan.loaded.new_parameters,
        },
    )
    write_text(plan.run_dir / RECIPE_FILE, plan.recipe.to_yaml(plan.derived))


def _check_same_data(plan: Plan) -> None:
    before = read_json(plan.run_dir / DATA_FILE)["fingerprints"]
    changed = sorted(
        name for name in {*before, *plan.data.fingerprints} if before.get(name) != plan.data.fingerprints.get(name)
    )
    if changed:
        raise CheckpointError(
            f"{plan.run_dir}: the rows are not those the run was started with (changed: {', '.join(changed)}).",
            "the same content of every split.",
            "Restore the data, or start a new run.",
        )


def _restore(
    plan: Plan, model: torch.nn.Module, optimizer: torch.optim.Optimizer, log: RunLog
) -> tuple[TrainState, list[WarningRecord]]:
    """Put model, optimizer, state and log where the newest whole checkpoint left them."""
    if not plan.resume:
        return TrainState(), []
    checkpoint, messages = newest_checkpoint(plan.run_dir)
    state = TrainState()
    if checkpoint is not None:
        _load_weights(model, checkpoint)
        optimizer_from_tensors(optimizer, _parameter_names(model, optimizer), checkpoint.optimizer)
        state = TrainState.from_dict(checkpoint.state["train"])
    log.truncate(int(checkpoint.state["log_length"]) if checkpoint is not None else 0)
    return state, [WarningRecord(state.step, "checkpoint", message, []) for message in messages]


def _load_weights(model: torch.nn.Module, checkpoint: LoadedCheckpoint) -> None:
    result = model.load_state_dict(checkpoint.model, strict=False)
    # Tied weights are stored once; a name that is missing must share its storage with one that is there.
    own = model.state_dict()
    present = {own[name].data_ptr() for name in checkpoint.model if name in own}
    lost = [name for name in result.missing_keys if own[name].data_ptr() not in present]
    if lost or result.unexpected_keys:
        name = (lost or result.unexpected_keys)[0]
        raise CheckpointError(
            f"{checkpoint.path}: it does not fit this model (for example {name}).",
            "a checkpoint of the same model.",
            "Resume with the model that the run was started with.",
        )


def _parameter_names(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Name the optimizer's parameters, in the order in which it holds them."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def _loop_parts(plan: Plan, model: torch.nn.Module, optimizer: torch.optim.Optimizer, log: RunLog) -> LoopParts:
    task, device = plan.data.task, plan.device
    split = plan.data.splits["train"]
    pad_token_id = int(plan.loaded.tokenizer.pad_token_id)

    def make_batch(rows: np.ndarray) -> Batch:
        batch = task.collate(split.encoded(), rows, split.targets, pad_token_id)
        return {name: tensor.to(device.torch_device) for name, tensor in batch.items()}

    def micro_batch(model: torch.nn.Module, batch: Batch, num_targets: int) -> tuple[torch.Tensor, int]:
        outputs = task.run(model, batch, "train")
        return task.loss(outputs, batch) / num_targets, task.count(batch)

    return LoopParts(
        make_batch=make_batch,
        count=task.count,
        micro_batch=micro_batch,
        evaluate=functools.partial(_evaluate, plan, model),
        save=functools.partial(_save, plan, model, optimizer, log),
    )


def _settings(plan: Plan) -> LoopSettings:
    recipe = plan.recipe
    best = None if recipe.train.best in (None, "last") else recipe.train.best
    limit = parse_duration(recipe.train.time_limit) if recipe.train.time_limit is not None else None

    def learning_rate(step: int) -> float:
        factor = learning_rate_factor(
            step, total_steps=plan.total_steps, warmup_steps=plan.warmup_steps, schedule=recipe.optim.schedule
        )
        return recipe.optim.learning_rate * factor

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
        **({"time_limit_seconds": limit.number * 60} if limit is not None else {}),
    )


def _evaluate(plan: Plan, model: torch.nn.Module) -> dict[str, float]:
    split = plan.data.splits["validation"]
    predictions = predict_tokens(
        model,
        plan.data.task,
        split.encoded(),
        pad_token_id=int(plan.loaded.tokenizer.pad_token_id),
        batch_size=plan.recipe.evaluate.batch_size,
        device=plan.device,
    )
    labelled = split.targets >= 0
    best = plan.recipe.train.best
    names = [*plan.scores, *([best] if best not in (None, "last", *plan.scores) else [])]
    return plan.data.task.score(predictions[labelled], split.targets[labelled], [str(name) for name in names])


def _save(
    plan: Plan,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    log: RunLog,
    state: TrainState,
    record: CheckpointRecord,
) -> list[str]:
    before = log.sync()
    log.append(record)
    try:
        save_checkpoint(
            plan.run_dir,
            state.step,
            model=dict(model.state_dict()),
            optimizer=optimizer_to_tensors(optimizer, _parameter_names(model, optimizer)),
            state={"train": state.to_dict(), "log_length": log.sync()},
        )
    except (CheckpointError, OSError):
        # There is no such checkpoint, so its record goes, and not to the discarded ones: it never was true.
        log.truncate(before, keep_tail=False)
        raise
    return prune_checkpoints(plan.run_dir, plan.recipe.train.keep, state.best_step)


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
