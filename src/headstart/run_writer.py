"""The run folder as training writes it: its files, its log, its checkpoints, and the way back to one.

May import layers 0 to 4, `preparation` and `run_identity`. One process writes; with several it is number 0, and the
others get from it what they need.
"""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from headstart.errors import CheckpointError
from headstart.run_files import write_json, write_text
from headstart.run_identity import compare_identity, identify
from headstart.runlog import (
    DATA_FILE,
    ENVIRONMENT_FILE,
    NON_FINITE_DIR,
    RECIPE_FILE,
    TASK_FILE,
    CheckpointRecord,
    Record,
    RunLock,
    RunLog,
    StopRecord,
    WarningRecord,
    new_run_dir,
)
from headstart.training.averaged_weights import AveragedWeights
from headstart.training.checkpoint import (
    LoadedCheckpoint,
    newest_checkpoint,
    optimizer_from_tensors,
    optimizer_to_tensors,
    prune_checkpoints,
    save_checkpoint,
)
from headstart.training.device import describe_environment, shard_model
from headstart.training.model_state import load_weights, trained_state
from headstart.training.non_finite import find_non_finite
from headstart.training.optim import build_optimizer
from headstart.training.optimizer_state import parameter_names
from headstart.training.processes import Processes
from headstart.training.sharding import like, whole_tensors
from headstart.training.state import Batch, TrainState, UpdateGradients

if TYPE_CHECKING:
    from headstart.preparation import Plan
    from headstart.tasks import Task

__all__ = ["RunWriter", "describe_update", "shard_training", "share_state", "whole_state", "write_task"]

_MODEL, _OPTIMIZER, _AVERAGE = "model/", "optimizer/", "average/"


class RunWriter:
    """The one writer of a run folder.

    Args:
        plan: of the training.
        model: gets the checkpoint's weights.
        optimizer: gets the checkpoint's state.
    """

    def __init__(self, plan: Plan, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._plan = plan
        self._model = model
        self._optimizer = optimizer
        self._identity = identify(plan.recipe, plan.data.fingerprints, plan.loaded)
        plan.identities = [self._identity]
        self._open = contextlib.ExitStack()
        self._log: RunLog | None = None

    def open(self) -> list[WarningRecord]:
        """Make the folder, or open it again and go back to its newest whole checkpoint.

        The tail of the log that came after the checkpoint moves to `log.discarded.jsonl`. The plan's state is set.

        Returns:
            What the user should know about that.

        Raises:
            CheckpointError: the folder is in use; checkpoints are there, but none is whole; or the run was started with
                something else, which `plan.allow` does not name.
        """
        plan = self._plan
        with contextlib.ExitStack() as stack:
            if not plan.resume:
                _make_run_dir(plan)
            stack.enter_context(RunLock(plan.run_dir))
            if not plan.resume:
                if (plan.run_dir / RECIPE_FILE).exists():  # since the plan was made
                    raise CheckpointError(
                        f"{plan.run_dir} is another run's by now.",
                        "a new folder for a new run.",
                        f"Go on with it: headstart train --resume --run {plan.run_dir}; or choose another --run.",
                    )
                _write_run_files(plan)
            self._log = RunLog(plan.run_dir)
            stack.callback(self._log.close)
            warnings = self._go_on() if plan.resume else []
            self._open = stack.pop_all()
        return warnings

    def close(self) -> None:
        """Close the log and free the folder."""
        self._open.close()

    def log(self, record: Record) -> None:
        """Write a record; the last one puts the log on the disk.

        That of a checkpoint is in the log before the checkpoint is: the log's length stands in it.
        """
        if not isinstance(record, CheckpointRecord):
            self._opened_log.append(record)
        if isinstance(record, StopRecord):
            self._opened_log.sync()

    def save(
        self,
        state: TrainState,
        record: CheckpointRecord,
        model: dict[str, torch.Tensor],
        optimizer: dict[str, torch.Tensor],
    ) -> list[str]:
        """Write a checkpoint; see `LoopParts.save` and `whole_state`."""
        log = self._opened_log
        before = log.sync()
        log.append(record)
        epoch, index = self._plan.batches.locate(state.step)
        try:
            save_checkpoint(
                self._plan.run_dir,
                state.step,
                model=model,
                optimizer=optimizer,
                state={
                    "train": state.to_dict(),
                    # With a token budget, finding the place of a step means planning every epoch before it.
                    "place": {"epoch": epoch, "first_step": state.step - index},
                    "log_length": log.sync(),
                    "identity": self._identity,
                    "former_identities": self._plan.identities[1:],
                },
                average=self._plan.averages.to_tensors() if self._plan.averages is not None else None,
            )
        except Exception:
            # There is no such checkpoint, so its record goes, and not to the discarded ones: it never was true.
            log.truncate(before, keep_tail=False)
            raise
        return prune_checkpoints(self._plan.run_dir, self._plan.recipe.train.keep, state.best_step)

    def restore(self) -> TrainState:
        """Go back to the newest whole checkpoint; see `LoopParts.restore`.

        Raises:
            CheckpointError: none is whole.
        """
        checkpoint, messages = newest_checkpoint(self._plan.run_dir)
        if checkpoint is None:
            raise _none_whole(self._plan, messages)
        return self._load(checkpoint)

    def keep_update(self, step: int, batch: Batch, details: dict[str, object]) -> str:
        """Keep an update that is not finite: what is known of it as JSON, its batch as tensors.

        Returns:
            Where it stands, or why it could not be kept.
        """
        folder = self._plan.run_dir / NON_FINITE_DIR
        file = folder / f"step-{step:06d}.json"
        try:
            folder.mkdir(exist_ok=True)
            write_json(file, details)
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in batch.items()}
            save_file(tensors, file.with_suffix(".safetensors"))
        except (OSError, SafetensorError) as error:
            return f"it could not be kept ({error})"
        return f"see {folder.name}/{file.name}"

    @property
    def _opened_log(self) -> RunLog:
        if self._log is None:
            raise TypeError("the run folder is not open")
        return self._log

    def _go_on(self) -> list[WarningRecord]:
        """Put everything where the newest whole checkpoint left it."""
        plan = self._plan
        checkpoint, messages = newest_checkpoint(plan.run_dir)
        if checkpoint is None:
            if messages:
                raise _none_whole(plan, messages)
            self._opened_log.truncate(0)
            _write_run_files(plan)
            return [WarningRecord(0, "checkpoint", "nothing was saved yet: the training begins anew", [])]
        changes = compare_identity(
            checkpoint.state.get("identity", {}), self._identity, allowed=plan.allow, run=str(plan.run_dir)
        )
        former = checkpoint.state.get("former_identities", [])
        plan.identities += [checkpoint.state["identity"], *former] if changes else former
        plan.state = self._load(checkpoint)
        step = plan.state.step
        messages += prune_checkpoints(plan.run_dir, plan.recipe.train.keep, plan.state.best_step)
        if changes:
            write_text(plan.run_dir / RECIPE_FILE, plan.recipe.to_yaml(plan.derived))
        return [
            *(WarningRecord(step, "checkpoint", message, []) for message in messages),
            *(WarningRecord(step, "changed", f"changed on the way, as allowed: {text}", []) for text in changes),
            *(WarningRecord(step, "changed", text, []) for text in plan.changes),
        ]

    def _load(self, checkpoint: LoadedCheckpoint) -> TrainState:
        trained_only = self._plan.loaded.adapted is not None
        load_weights(self._model, checkpoint.model, str(checkpoint.path), trained_only=trained_only)
        names = parameter_names(self._model, self._optimizer)
        optimizer_from_tensors(self._optimizer, names, checkpoint.optimizer)
        if self._plan.averages is not None:
            self._plan.averages.from_tensors(checkpoint.average, str(checkpoint.path))
        self._opened_log.truncate(int(checkpoint.state["log_length"]))
        if "place" in checkpoint.state:
            self._plan.batches.remember(**checkpoint.state["place"])
        return TrainState.from_dict(checkpoint.state["train"])


def share_state(
    processes: Processes,
    state: TrainState,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    averages: AveragedWeights | None = None,
) -> TrainState:
    """Give every process the model, its averages, the optimizer's state and the training state of process 0.

    Returns:
        The state of process 0.
    """
    if processes.count == 1:
        return state
    names = parameter_names(model, optimizer)
    tensors = {f"{_MODEL}{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"{_OPTIMIZER}{name}": tensor for name, tensor in optimizer_to_tensors(optimizer, names).items()}
    if averages is not None:
        tensors |= {f"{_AVERAGE}{name}": tensor for name, tensor in averages.to_tensors().items()}
    shared = processes.share_tensors(tensors)
    if processes.rank:
        load_weights(model, _part(shared, _MODEL), "process 0")
        optimizer_from_tensors(optimizer, names, _part(shared, _OPTIMIZER))
        if averages is not None:
            averages.from_tensors(_part(shared, _AVERAGE), "process 0")
    return TrainState.from_dict(processes.share(state.to_dict()))


def whole_state(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, *, trained_only: bool = False
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Give what a checkpoint holds of the model and of the optimizer; parts are put together by all processes."""
    tensors = optimizer_to_tensors(optimizer, parameter_names(model, optimizer))
    return whole_tensors(trained_state(model) if trained_only else model.state_dict()), whole_tensors(tensors)


def shard_training(plan: Plan, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Leave a part of the model in each process, and of the optimizer's state with it.

    Returns:
        The optimizer over the parts.
    """
    tensors = optimizer_to_tensors(optimizer, parameter_names(model, optimizer))
    shard_model(model)
    sharded = build_optimizer(model, plan.recipe.optim, fast=False)
    parameters = dict(model.named_parameters())
    parts = {name: like(tensor, parameters.get(name.rpartition("/")[0])) for name, tensor in tensors.items()}
    optimizer_from_tensors(sharded, parameter_names(model, sharded), parts)
    return sharded


def describe_update(
    plan: Plan, model: torch.nn.Module, step: int, rows: np.ndarray, gradients: UpdateGradients
) -> dict[str, object]:
    """Gather what is known of an update that is not finite, from every process."""
    numbers = plan.data.splits["train"].rows
    bad_rows, bad_names = find_non_finite(model, gradients)
    pieces = plan.processes.gather([piece.tolist() for piece in gradients.pieces])
    bad = plan.processes.gather(bad_rows)
    return {
        "step": step,
        "loss": str(gradients.loss),
        "grad_norm": str(gradients.gradient_norm),
        "rows": numbers[rows].tolist(),
        "micro_batches": [numbers[piece].tolist() for own in pieces for piece in own],
        "rows_of_non_finite_losses": sorted(numbers[[row for own in bad for row in own]].tolist()),
        "parameters_with_non_finite_gradients": bad_names,
    }


def _part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _none_whole(plan: Plan, messages: list[str]) -> CheckpointError:
    return CheckpointError(
        f"{plan.run_dir}: no checkpoint is whole.\n- " + "\n- ".join(messages),
        "at least one checkpoint as it was written.",
        f"Copy one back from elsewhere; or remove {plan.run_dir / 'checkpoints'} to begin anew with --resume.",
    )


def _make_run_dir(plan: Plan) -> None:
    if plan.recipe.output.run is None:
        name, _, _ = plan.run_dir.name.rpartition("-")
        plan.run_dir = new_run_dir(plan.run_dir.parent, name)
    else:
        plan.run_dir.mkdir(parents=True, exist_ok=True)
    plan.recipe = plan.recipe.replace({"output.run": str(plan.run_dir)})
    plan.summary.run_dir = str(plan.run_dir)


def write_task(plan: Plan, task: Task) -> None:
    """Write what is learned, and the limit of a row if the recipe sets one."""
    write_json(plan.run_dir / TASK_FILE, {**task.to_dict(), "max_length": plan.recipe.data.max_length})


def _write_run_files(plan: Plan) -> None:
    """Write what is known before the first step. The recipe comes last: where it stands, the others do too."""
    data = plan.data
    write_task(plan, data.task)
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
            "numbers": dict(plan.summary.numbers),
            "findings": [asdict(finding) for finding in data.findings],
            "notes": plan.summary.notes,
            "new_parameters": plan.loaded.new_parameters,
        },
    )
    write_text(plan.run_dir / RECIPE_FILE, plan.recipe.to_yaml(plan.derived))
