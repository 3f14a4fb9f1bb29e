"""What a Trainer writes and reads: models, checkpoints, and checkpoints of transformers' Trainer.

A checkpoint is a folder that is there whole or not at all (`training/whole_folder.py`), without pickle:

    OUTPUT_DIR/checkpoint-500/
        config.json, model.safetensors, tokenizer files      as from_pretrained reads them
        optimizer.safetensors                                "PARAMETER/KEY" -> tensor
        trainer_state.json                                   as transformers writes it
        headstart_state.json                                 everything else that going on exactly needs
        training_args.json                                   for people to read
        manifest.json                                        sizes and SHA-256
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedModel, TrainerState
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, unwrap_peft_model

from headstart.drop_in.optimization import Optimization
from headstart.errors import CheckpointError, RecipeError
from headstart.training.checkpoint import from_json, separate_shared, to_json, write_tensors
from headstart.training.model_state import load_weights
from headstart.training.optimizer_state import optimizer_from_tensors, optimizer_to_tensors, parameter_names
from headstart.training.whole_folder import MANIFEST_FILE, verify_whole_folder, write_whole_folder

__all__ = ["Checkpoints", "Resumed"]

logger = logging.getLogger(__name__)

_VERSION: Final = "trainer_checkpoint.v1"
_WEIGHTS: Final = "model.safetensors"
_SHARDED_WEIGHTS: Final = "model.safetensors.index.json"
_ADAPTER: Final = "adapter_model.safetensors"
_OPTIMIZER: Final = "optimizer.safetensors"
_TRAINER_STATE: Final = "trainer_state.json"
_STATE: Final = "headstart_state.json"
_ARGUMENTS: Final = "training_args.json"
_NEEDED: Final = (_TRAINER_STATE, _STATE)
_MARGIN_BYTES: Final = 2**24  # tokenizer, configuration and JSON


@dataclass(frozen=True)
class Resumed:
    """What a checkpoint says about the place to go on from.

    Args:
        step: updates made.
        values: what `_save_checkpoint` was given; empty for a checkpoint of transformers.
    """

    step: int
    values: dict[str, Any]


class Checkpoints(Optimization):
    """Saves and loads."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the model, so that `from_pretrained` reads it, and the tokenizer.

        Args:
            output_dir: None takes that of the arguments.
        """
        folder = Path(self._output_dir if output_dir is None else output_dir)
        if self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            if isinstance(self.model, PreTrainedModel) or self._is_adapter:
                self.model.save_pretrained(folder)
            else:
                tensors, _ = separate_shared(self.model.state_dict())
                write_tensors(folder / _WEIGHTS, tensors)
            tokenizer = self.processing_class or getattr(self.data_collator, "tokenizer", None)
            if tokenizer is not None:
                tokenizer.save_pretrained(folder)
            (folder / _ARGUMENTS).write_text(self.args.to_json_string() + "\n", encoding="utf-8")
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)  # type: ignore[attr-defined]

    def _check_best_metric(self, metrics: Mapping[str, float]) -> str:
        """Give the full name of the metric that chooses the best checkpoint.

        Raises:
            RecipeError: it is not among the metrics.
        """
        name = str(self.args.metric_for_best_model or "loss")
        name = name if name.startswith("eval_") else f"eval_{name}"
        if name not in metrics:
            raise RecipeError(
                f'metric_for_best_model: there is no "{name}" among the metrics.',
                f"one of: {', '.join(metrics)}.",
                "Return it from compute_metrics, or set metric_for_best_model.",
            )
        return name

    @property
    def _is_adapter(self) -> bool:
        return unwrap_peft_model(self.model) is not self.model

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Write a checkpoint of the training that runs; see `Training.write_checkpoint`."""
        self._training.write_checkpoint()

    def _write_checkpoint(self, folder: Path, values: Mapping[str, Any], best_folder: Path | None) -> None:
        """Write a checkpoint; every process calls it, and one writes.

        Args:
            folder: its place.
            values: what else going on exactly needs, as JSON takes it.
            best_folder: of the best evaluation so far.

        Raises:
            CheckpointError: it could not be written, and is not there.
        """
        former_best = self.state.best_model_checkpoint
        if best_folder is not None and (best_folder == folder or best_folder.is_dir()):
            self.state.best_model_checkpoint = str(best_folder)
        if not self.args.should_save:
            return
        exported = [
            each for each in [*self.callback_handler.callbacks, self.control] if isinstance(each, ExportableState)
        ]
        self.state.stateful_callbacks = TrainerState(stateful_callbacks=exported).stateful_callbacks  # type: ignore[arg-type]
        tensors: dict[str, torch.Tensor] = {}
        if not self.args.save_only_model:
            tensors = optimizer_to_tensors(self.optimizer, parameter_names(self.model, self.optimizer))
        tensors, shared = separate_shared(tensors)
        document = {
            "version": _VERSION,
            "step": self.state.global_step,
            "shared": shared,
            "groups": [] if self.args.save_only_model else self._changed_in_groups(),
            "scheduler": None if self.args.save_only_model else self._scheduler_state(),
            "values": to_json(values),
        }

        def fill(temporary: Path) -> None:
            self.save_model(str(temporary), _internal_call=True)
            if not self.args.save_only_model:
                write_tensors(temporary / _OPTIMIZER, tensors)
            (temporary / _STATE).write_text(json.dumps(document, indent=1, allow_nan=False), encoding="utf-8")
            self.state.save_to_json(str(temporary / _TRAINER_STATE))

        weights = sum(parameter.nbytes for parameter in self.model.parameters())
        try:
            write_whole_folder(
                folder,
                fill,
                version=_VERSION,
                step=self.state.global_step,
                num_bytes=weights + sum(tensor.nbytes for tensor in tensors.values()) + _MARGIN_BYTES,
                is_whole=_is_whole,
            )
        except CheckpointError:
            self.state.best_model_checkpoint = former_best
            raise

    def _numbers_of_groups(self) -> list[dict[str, bool | int | float]]:
        """Give the numbers that each group of the optimizer holds, the learning rate apart."""
        return [
            {name: value for name, value in group.items() if isinstance(value, bool | int | float) and name != "lr"}
            for group in self.optimizer.param_groups
        ]

    def _changed_in_groups(self) -> list[dict[str, bool | int | float]]:
        """Give the numbers in the optimizer's groups that training has changed: some optimizers keep state there."""
        return [
            {name: value for name, value in now.items() if name not in then or then[name] != value}
            for then, now in zip(self._groups_at_start, self._numbers_of_groups(), strict=True)
        ]

    def _scheduler_state(self) -> Any:
        try:
            return to_json(self.lr_scheduler.state_dict())
        except TypeError as error:
            logger.warning(
                "the state of the scheduler is not saved (%s); resuming will take as many steps with a new one", error
            )
            return None

    def _newest_checkpoint(self, output_dir: str) -> Path:
        """Find the newest checkpoint that is whole.

        Raises:
            CheckpointError: there is none.
        """
        passed_over: list[Path] = []
        for folder in _newest_first(Path(output_dir)):
            if _is_complete(folder):
                for each in passed_over:
                    logger.warning("%s is not whole and was passed over", each)
                return folder
            passed_over.append(folder)
        raise CheckpointError(
            f"{output_dir}: there is no checkpoint" + (" that is whole." if passed_over else "."),
            f"a folder such as {PREFIX_CHECKPOINT_DIR}-500.",
            "Give its path as resume_from_checkpoint; or leave it out to begin anew.",
        )

    def _load_checkpoint(self, folder: Path, *, is_verified: bool = False) -> Resumed:
        """Put model and history where a checkpoint left them; optimizer and scheduler follow in `_load_optimizer`.

        Args:
            folder: a checkpoint of this Trainer or of transformers'.
            is_verified: its files have been compared with its manifest just now.

        Raises:
            CheckpointError: it is not there, broken, or not of this model.
        """
        if not folder.is_dir():
            raise CheckpointError(
                f"{folder}: there is no such folder.",
                f"a checkpoint, such as {PREFIX_CHECKPOINT_DIR}-500 in the output_dir of a training.",
                "Check the path; resume_from_checkpoint=True takes the newest one.",
            )
        is_own = _is_own(folder)
        if is_own and not is_verified:
            verify_whole_folder(folder, version=_VERSION, needed=_NEEDED)
        self._load_weights(folder)
        try:
            self.state = TrainerState.load_from_json(str(folder / _TRAINER_STATE))
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(
                f"{folder}: {_TRAINER_STATE} cannot be read ({error}).",
                "a folder that a Trainer wrote while it trained.",
                "Give the path of a checkpoint; to train on from a model, load it with from_pretrained instead.",
            ) from error
        if not is_own:
            return Resumed(self.state.global_step, {})
        document = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        return Resumed(int(document["step"]), from_json(document["values"]))

    def _load_optimizer(self, folder: Path) -> None:
        """Put optimizer and scheduler where a checkpoint left them, and say what it does not have."""
        step = self.state.global_step
        document: dict[str, Any] = {}
        if (folder / _STATE).exists():
            document = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        if (folder / _OPTIMIZER).exists():
            tensors = load_file(folder / _OPTIMIZER)
            tensors |= {alias: tensors[name] for alias, name in document["shared"].items()}
            optimizer_from_tensors(self.optimizer, parameter_names(self.model, self.optimizer), tensors)
        else:
            others = [name for name in ("optimizer.pt", "optimizer.bin") if (folder / name).exists()]
            why = f"{others[0]} is a pickle, which is not read" if others else "it was saved without"
            logger.warning("%s: the optimizer's state could not be taken (%s): its moments start at zero", folder, why)
        for group, values in zip(self.optimizer.param_groups, document.get("groups", []), strict=False):
            group.update(values)
        if document.get("scheduler") is not None:
            self.lr_scheduler.load_state_dict(from_json(document["scheduler"]))
        elif not self._steps_after_evaluation():
            # The rate of step N, as if N steps had been made.
            self.optimizer._opt_called = True
            for _ in range(step):
                self.lr_scheduler.step()

    def _load_weights(self, folder: Path) -> None:
        origin = str(folder)
        try:
            if self._is_adapter:
                from peft import set_peft_model_state_dict  # type: ignore[import-not-found,unused-ignore]

                for name in self.model.peft_config:
                    place = folder if name == "default" else folder / name
                    set_peft_model_state_dict(self.model, load_file(place / _ADAPTER), adapter_name=name)
            elif (folder / _WEIGHTS).exists():
                tensors = load_file(folder / _WEIGHTS)
                load_weights(self.model, _renamed(self.model, folder, tensors), origin)
            elif (folder / _SHARDED_WEIGHTS).exists():
                index = json.loads((folder / _SHARDED_WEIGHTS).read_text(encoding="utf-8"))
                tensors = {}
                for name in sorted(set(index["weight_map"].values())):
                    tensors |= load_file(folder / name)
                load_weights(self.model, _renamed(self.model, folder, tensors), origin)
            else:
                raise FileNotFoundError(_WEIGHTS)
        except FileNotFoundError as error:
            pickled = (folder / "pytorch_model.bin").exists()
            found = "pytorch_model.bin, a pickle, which is not read" if pickled else f"no {_WEIGHTS}"
            raise CheckpointError(
                f"{folder}: it holds {found}.",
                "a checkpoint with safetensors, as transformers writes them by default.",
                "Load the model in transformers and save it again with save_pretrained."
                if pickled
                else "Check the path.",
            ) from error
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{folder}: the weights cannot be read ({error}).", "files as they were written.", "Copy them again."
            ) from error


def _renamed(model: torch.nn.Module, folder: Path, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Give the tensors the names that they have in the model, where its files have others."""
    own = model.state_dict()
    if set(tensors) <= set(own) or not isinstance(model, PreTrainedModel):
        return tensors
    load: Any = type(model).from_pretrained
    read, info = load(folder, dtype=model.dtype, output_loading_info=True)
    lost = sorted({str(key) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in info[kind]})
    if lost:
        raise CheckpointError(
            f"{folder}: it does not fit this model (for example {lost[0]}).",
            "a checkpoint of the same model.",
            "Resume with the model that the training was started with.",
        )
    return dict(read.state_dict())


def _is_own(folder: Path) -> bool:
    """Say whether headstart has written a checkpoint, as far as the files show that are there."""
    return (folder / _STATE).exists() or (folder / MANIFEST_FILE).exists()


def _is_complete(folder: Path) -> bool:
    """Say whether a checkpoint can be gone on from; of those of transformers, by the file that it writes last."""
    return _is_whole(folder) if _is_own(folder) else (folder / _TRAINER_STATE).exists()


def _is_whole(folder: Path) -> bool:
    try:
        verify_whole_folder(folder, version=_VERSION, needed=_NEEDED)
    except CheckpointError:
        return False
    return True


def _newest_first(output_dir: Path) -> list[Path]:
    """List the checkpoints by step."""
    found = []
    if output_dir.is_dir():
        for entry in os.scandir(output_dir):
            prefix, _, step = entry.name.partition("-")
            if prefix == PREFIX_CHECKPOINT_DIR and step.isdecimal() and entry.is_dir():
                found.append((int(step), Path(entry.path)))
    return [path for _, path in sorted(found, reverse=True)]
