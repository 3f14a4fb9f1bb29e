"""Checkpoints: written whole or not at all, verified when read.

May import layers 0 and 1. A checkpoint is a folder inside the run folder:

    checkpoints/step-000500/
        model.safetensors        parameters and buffers by name
        optimizer.safetensors    "PARAMETER/KEY" -> tensor, see `optimizer_state.py`
        average.safetensors      averages of the weights, where a training keeps them
        state.json               everything else
        manifest.json            size and SHA-256 of the others; written last

`whole_folder.py` writes it whole or not at all. Never pickle.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from headstart.errors import CheckpointError, HeadstartWarning, format_rows
from headstart.runlog import CHECKPOINTS_DIR
from headstart.training.model_state import load_weights
from headstart.training.optimizer_state import optimizer_from_tensors, optimizer_to_tensors, parameter_names
from headstart.training.whole_folder import (
    MANIFEST_FILE,
    broken_folder,
    discard_folder,
    verify_whole_folder,
    write_whole_folder,
)

__all__ = [
    "LoadedCheckpoint",
    "from_json",
    "last_checkpoint",
    "load_checkpoint",
    "newest_checkpoint",
    "optimizer_from_tensors",
    "optimizer_to_tensors",
    "prune_checkpoints",
    "save_checkpoint",
    "separate_shared",
    "to_json",
    "write_tensors",
]

_VERSION = "checkpoint.v1"
_MODEL_FILE = "model.safetensors"
_OPTIMIZER_FILE = "optimizer.safetensors"
_STATE_FILE = "state.json"
_AVERAGE_FILE = "average.safetensors"
_FILES = (_MODEL_FILE, _OPTIMIZER_FILE, _STATE_FILE)

# "step-000500"; ".replaced" is one that a newer one of the same step is about to replace.
_FOLDER = re.compile(r"step-(\d{6,})(\.replaced)?")
_HIDDEN_PREFIX = ".step-"
_MARGIN_BYTES = 2**20  # headers, JSON and the folder itself


@dataclass(frozen=True)
class LoadedCheckpoint:
    """What a checkpoint holds.

    Args:
        step: updates made when it was written.
        model: parameters and buffers by name, on the CPU; tied ones under each of their names.
        optimizer: what `optimizer_to_tensors` gave, on the CPU.
        state: what the caller of `save_checkpoint` gave.
        path: its folder.
        average: averages of the weights, what `AveragedWeights.to_tensors` gave; empty where there are none.
    """

    step: int
    model: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    state: dict[str, Any]
    path: Path
    average: dict[str, torch.Tensor] = field(default_factory=dict)

    def restore(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Put the weights into a model, and the moments into its optimizer, in place.

        Args:
            model: of the same kind; that of Accelerate without its wrapper (`accelerator.unwrap_model(model)`).
            optimizer: of the same kind, over its parameters, built and prepared before.

        Raises:
            CheckpointError: a tensor is missing, or does not fit.
        """
        load_weights(model, self.model, str(self.path))
        if optimizer is not None:
            optimizer = _without_wrapper(optimizer)
            optimizer_from_tensors(optimizer, parameter_names(model, optimizer), self.optimizer)


def save_checkpoint(
    run_dir: Path | str,
    step: int,
    *,
    model: torch.nn.Module | Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer | Mapping[str, torch.Tensor],
    state: Mapping[str, Any],
    keep: int | None = None,
    average: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """Write a checkpoint, whole or not at all.

    A kill or an error at any moment leaves the older checkpoints as they were, and the new one is
    there whole or not there. One of the same step is replaced. The caller holds the folder's lock.

    Args:
        run_dir: the run folder.
        step: updates made so far.
        model: a model on any device, or its `state_dict()`; that of Accelerate without its wrapper
            (`accelerator.unwrap_model(model)`).
        optimizer: over the model's parameters; beside a `state_dict()`, what `optimizer_to_tensors` gave.
        state: dicts with text keys, lists, text, numbers, true, false and None, nested at will;
            tuples come back as lists, NaN and infinities as they are. `scheduler.state_dict()` is
            such a dict.
        keep: how many of the newest whole checkpoints stay, at least 1, and this one; None keeps all.
        average: averages of the weights by name, such as `state_dict()` of `torch.optim.swa_utils.AveragedModel`; None
            where there are none.

    Returns:
        The checkpoint's folder, `run_dir/checkpoints/step-000500`.

    Raises:
        CheckpointError: it could not be written (no room, no permission), and is not there.
        TypeError: `state` holds something that JSON cannot; or an optimizer comes without its model.
        ValueError: `keep` is below 1, or `step` below 0.

    Warns:
        HeadstartWarning: the folder has checkpoints of later steps, which `last_checkpoint` gives instead of this one;
            or an old one could not be removed.

    Example:
        >>> import tempfile
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save_checkpoint(folder, 500, model=model, optimizer=optimizer, state={"epoch": 1})
        ...     last = last_checkpoint(folder)
        >>> path.name, last.step, last.state
        ('step-000500', 500, {'epoch': 1})
        >>> last.restore(model, optimizer)
    """
    if step < 0:
        raise ValueError(f"step is {step}; it counts the updates made and is at least 0")
    if keep is not None and keep < 1:
        raise ValueError(f"keep is {keep}; it is at least 1, or None for all")
    if isinstance(optimizer, torch.optim.Optimizer):
        if not isinstance(model, torch.nn.Module):
            raise TypeError("save_checkpoint needs the model itself to name the parameters of an optimizer")
        optimizer = _without_wrapper(optimizer)
        optimizer = optimizer_to_tensors(optimizer, parameter_names(model, optimizer))
    if isinstance(model, torch.nn.Module):
        model = model.state_dict()
    final = Path(run_dir) / CHECKPOINTS_DIR / f"step-{step:06d}"
    model_tensors, shared = separate_shared(model)
    optimizer_tensors, shared_moments = separate_shared(optimizer)
    average_tensors, shared_averages = separate_shared(average or {})
    document = {
        "version": _VERSION,
        "step": step,
        "shared": {_MODEL_FILE: shared, _OPTIMIZER_FILE: shared_moments, _AVERAGE_FILE: shared_averages},
        "state": to_json(state),
    }
    text = json.dumps(document, indent=1, allow_nan=False)
    parts = (model_tensors, optimizer_tensors, average_tensors)
    num_bytes = sum(tensor.nbytes for tensors in parts for tensor in tensors.values())

    def fill(folder: Path) -> None:
        write_tensors(folder / _MODEL_FILE, model_tensors)
        write_tensors(folder / _OPTIMIZER_FILE, optimizer_tensors)
        if average_tensors:
            write_tensors(folder / _AVERAGE_FILE, average_tensors)
        (folder / _STATE_FILE).write_text(text, encoding="utf-8")

    write_whole_folder(
        final,
        fill,
        version=_VERSION,
        step=step,
        num_bytes=num_bytes + len(text) + _MARGIN_BYTES,
        is_whole=_is_whole,
    )
    if keep is not None:
        messages = prune_checkpoints(Path(run_dir), keep, step)
        later = [_parse_name(path)[0] for path in _newest_first(final.parent) if _parse_name(path)[0] > step]
        if later:
            messages.append(
                f"{final.parent} has checkpoints of later steps ({format_rows(later)}); last_checkpoint() gives the "
                "latest. Go on from it, or save to another folder."
            )
        _warn(messages)
    return final


def load_checkpoint(path: Path | str) -> LoadedCheckpoint:
    """Read a checkpoint, and verify every byte of it.

    Args:
        path: the checkpoint's folder.

    Raises:
        CheckpointError: a file is missing or is not what was written (the message names it).
    """
    path = Path(path)
    _verify(path)
    try:
        document = json.loads((path / _STATE_FILE).read_bytes())
        tensors = {}
        for name in (_MODEL_FILE, _OPTIMIZER_FILE, _AVERAGE_FILE):
            is_there = name != _AVERAGE_FILE or (path / name).exists()
            tensors[name] = load_file(path / name) if is_there else {}
            for alias, original in document["shared"].get(name, {}).items():
                tensors[name][alias] = tensors[name][original]
        step, state = document["step"], from_json(document["state"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise broken_folder(path, f"it cannot be read ({error})") from error
    return LoadedCheckpoint(step, tensors[_MODEL_FILE], tensors[_OPTIMIZER_FILE], state, path, tensors[_AVERAGE_FILE])


def last_checkpoint(run_dir: Path | str) -> LoadedCheckpoint | None:
    """Load the newest checkpoint of a folder that is whole, for a loop of one's own to go on from.

    Args:
        run_dir: as `save_checkpoint` was given it; it need not be there.

    Returns:
        The checkpoint; None where there is none yet.

    Raises:
        CheckpointError: checkpoints are there, and none is whole.

    Warns:
        HeadstartWarning: a broken one was passed over.
    """
    found, messages = newest_checkpoint(Path(run_dir))
    if found is None and messages:
        raise CheckpointError(
            f"{run_dir}: no checkpoint is whole.\n- " + "\n- ".join(messages),
            "at least one checkpoint as it was written.",
            f"Copy one back from elsewhere, or remove {Path(run_dir) / CHECKPOINTS_DIR} to begin anew.",
        )
    _warn(messages)
    return found


def newest_checkpoint(run_dir: Path) -> tuple[LoadedCheckpoint | None, list[str]]:
    """Load the newest checkpoint that is whole.

    Args:
        run_dir: the run folder.

    Returns:
        The checkpoint, or None where no whole one is there; and a sentence about each broken one
        that was passed over.
    """
    messages: list[str] = []
    for path in _newest_first(run_dir / CHECKPOINTS_DIR):
        try:
            return load_checkpoint(path), messages
        except CheckpointError as error:
            messages.append(f"{error.found} It was passed over.")
    return None, messages


def prune_checkpoints(run_dir: Path, keep: int, best_step: int | None = None) -> list[str]:
    """Remove what is no longer needed: all but the newest whole checkpoints and the best one.

    The newest are verified first, so that a broken one never stands in for a whole one. What a
    killed process left half written goes too. Nothing is raised: what cannot be removed costs space
    only.

    Args:
        run_dir: the run folder; the caller holds its lock.
        keep: number of the newest whole checkpoints that stay, at least 1.
        best_step: step of the best evaluation; its checkpoint stays too.

    Returns:
        A sentence about each folder that could not be removed.
    """
    root = run_dir / CHECKPOINTS_DIR
    kept: set[Path] = set()
    num_whole = 0
    for path in _newest_first(root):
        step, is_replaced = _parse_name(path)
        if is_replaced and path.with_suffix("") in kept:
            continue
        if num_whole < max(1, keep) and _is_whole(path):
            num_whole += 1
            kept.add(path)
        elif step == best_step or not _can_be_read(path):
            kept.add(path)
    if not num_whole:
        return []  # whatever may be left is the user's to mend
    messages = []
    for path in sorted(root.iterdir()):
        is_leftover = path.name.startswith(_HIDDEN_PREFIX)
        if is_leftover or (_FOLDER.fullmatch(path.name) and path not in kept):
            try:
                discard_folder(path)
            except OSError as error:
                messages.append(f"{path} could not be removed: {error.strerror or error}.")
    return messages


def separate_shared(
    tensors: Mapping[str, torch.Tensor],
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Store a tied tensor once: give the tensors to write, and alias -> name it is tied to."""
    separate: dict[str, torch.Tensor] = {}
    shared: dict[str, str] = {}
    first: dict[tuple[object, ...], str] = {}
    ends: dict[tuple[object, int], list[tuple[int, int]]] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach()
        start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        if end > start:
            key = (tensor.device, start, tensor.dtype, tensor.shape, tensor.stride())
            if key in first:
                shared[name] = first[key]
                continue
            first[key] = name
            spans = ends.setdefault((tensor.device, tensor.untyped_storage().data_ptr()), [])
            if any(start < other_end and other_start < end for other_start, other_end in spans):
                tensor = tensor.clone()  # another view of the same bytes: safetensors wants its own
            spans.append((start, end))
        separate[name] = tensor
    return separate, shared


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors that share no memory, as transformers reads them."""
    save_file({key: tensor.cpu().contiguous() for key, tensor in tensors.items()}, path, {"format": "pt"})


def _without_wrapper(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Give the optimizer inside that of Accelerate."""
    inner = getattr(optimizer, "optimizer", None)
    return inner if isinstance(inner, torch.optim.Optimizer) else optimizer


def _warn(messages: list[str]) -> None:
    for message in messages:
        warnings.warn(message, HeadstartWarning, stacklevel=3)  # the line of whoever saves or loads


def _parse_name(path: Path) -> tuple[int, bool]:
    match = _FOLDER.fullmatch(path.name)
    if match is None:
        raise ValueError(path.name)
    return int(match[1]), match[2] is not None


def _newest_first(root: Path) -> list[Path]:
    """List the checkpoints by step; of one step, the one being replaced comes last."""
    if not root.is_dir():
        return []
    paths = [path for path in root.iterdir() if _FOLDER.fullmatch(path.name)]

    def order(path: Path) -> tuple[int, bool]:
        step, is_replaced = _parse_name(path)
        return (-step, is_replaced)

    return sorted(paths, key=order)


def _can_be_read(path: Path) -> bool:
    """Say whether every file that is there can be opened: else nothing is known of the checkpoint, and it stays."""
    for name in (*_FILES, _AVERAGE_FILE, MANIFEST_FILE):
        try:
            with (path / name).open("rb"):
                pass
        except (FileNotFoundError, IsADirectoryError):
            continue
        except OSError:
            return False
    return True


def _is_whole(path: Path) -> bool:
    try:
        _verify(path)
    except CheckpointError:
        return False
    return True


def _verify(path: Path) -> None:
    step = verify_whole_folder(path, version=_VERSION, needed=_FILES)
    try:
        state_step = json.loads((path / _STATE_FILE).read_bytes())["step"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise broken_folder(path, f"{_STATE_FILE} cannot be read ({error!r})") from error
    match = _FOLDER.fullmatch(path.name)
    if step != state_step or (match is not None and int(match[1]) != step):
        raise broken_folder(path, f"its manifest says step {step}, its state step {state_step}")


def to_json(value: object) -> Any:
    """Make strict JSON; the floats that it does not know become {"$float": "nan"}.

    Raises:
        TypeError: there is something in it that JSON has no word for.
    """
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$float": str(value)}
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        if list(value) == ["$float"]:
            raise TypeError('The state of a checkpoint holds {"$float": ...}, which in its JSON is NaN or an infinity.')
        return {key: to_json(item) for key, item in value.items()}
    raise TypeError(f"The state of a checkpoint holds a {type(value).__name__}: {value!r:.100}. JSON has none.")


def from_json(value: Any) -> Any:
    """Give back what `to_json` was given."""
    if isinstance(value, list):
        return [from_json(item) for item in value]
    if isinstance(value, dict):
        if list(value) == ["$float"]:
            return float(value["$float"])
        return {key: from_json(item) for key, item in value.items()}
    return value
