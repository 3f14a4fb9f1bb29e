"""What a Trainer tells its callbacks, event by event, so that two Trainers can be compared."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState

__all__ = ["EVENTS", "Recorder", "assert_same", "difference", "without_times"]

EVENTS = (
    "on_init_end",
    "on_train_begin",
    "on_epoch_begin",
    "on_step_begin",
    "on_substep_end",
    "on_pre_optimizer_step",
    "on_optimizer_step",
    "on_step_end",
    "on_prediction_step",
    "on_log",
    "on_evaluate",
    "on_predict",
    "on_save",
    "on_epoch_end",
    "on_train_end",
)
_TIMES = ("_runtime", "_per_second", "_preparation_time")


class Recorder(TrainerCallback):
    """Keeps what each event brings: state, flags, and the other arguments with their kinds.

    Args:
        position: "first" of the callbacks, which sees the flags before any of them has acted, or "last".
        events: gets a record for each event; shared by the two.
        folder: the output folder, whose name is left out.
    """

    def __init__(self, position: str, events: list[dict[str, Any]], folder: Path) -> None:
        self.position, self.events, self.folder = position, events, folder

    def _keep(self, event: str, state: TrainerState, control: TrainerControl, others: dict[str, Any]) -> None:
        fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
        self.events.append(
            {
                "event": f"{event} ({self.position})",
                "state": without_times(copy.deepcopy(fields), self.folder),
                "control": dataclasses.asdict(control),
                "others": {name: _kind(value, self.folder) for name, value in others.items()},
            }
        )


def _record_as(event: str) -> Any:
    def keep(self: Recorder, args: Any, state: TrainerState, control: TrainerControl, **others: Any) -> None:
        self._keep(event, state, control, others)

    return keep


for _event in EVENTS:
    setattr(Recorder, _event, _record_as(_event))


def _kind(value: Any, folder: Path) -> Any:
    """Say what an argument is, where it is an object; the numbers, where it is a dict of them."""
    if isinstance(value, Mapping):
        return without_times(dict(value), folder)
    if isinstance(value, torch.optim.Optimizer):
        return "optimizer"
    if hasattr(value, "get_last_lr"):
        return "scheduler"
    if isinstance(value, DataLoader):
        return "dataloader"
    return type(value).__name__


def without_times(value: Any, folder: Path) -> Any:
    """Leave out how long things took, and where the output folder is."""
    if isinstance(value, Mapping):
        return {
            name: "a time" if str(name).endswith(_TIMES) else without_times(each, folder)
            for name, each in value.items()
        }
    if isinstance(value, list | tuple):
        return [without_times(each, folder) for each in value]
    return value.replace(str(folder), "OUTPUT") if isinstance(value, str) else value


def difference(ours: Any, theirs: Any, tolerance: float, place: str = "") -> str | None:
    """Find the first place where two values differ; None where they do not.

    Floats may differ by a share of their size.
    """
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        if list(ours) != list(theirs):
            return f"{place}: names {list(ours)} instead of {list(theirs)}"
        parts = ((f"{place}/{name}", ours[name], theirs[name]) for name in ours)
        return next((found for at, x, y in parts if (found := difference(x, y, tolerance, at))), None)
    if isinstance(ours, list) and isinstance(theirs, list):
        for index, (x, y) in enumerate(zip(ours, theirs, strict=False)):
            name = x.get("event", "") if isinstance(x, Mapping) else ""
            if found := difference(x, y, tolerance, f"{place}[{index}]{name}"):
                return found
        return f"{place}: {len(ours)} instead of {len(theirs)}" if len(ours) != len(theirs) else None
    if isinstance(ours, float) and isinstance(theirs, float):
        both_nan = math.isnan(ours) and math.isnan(theirs)
        is_close = both_nan or math.isclose(ours, theirs, rel_tol=tolerance, abs_tol=0.0)
        return None if is_close else f"{place}: {ours!r} instead of {theirs!r}"
    is_same = type(ours) is type(theirs) and ours == theirs
    return None if is_same else f"{place}: {ours!r} instead of {theirs!r}"


def assert_same(ours: list[dict[str, Any]], theirs: list[dict[str, Any]], *, tolerance: float = 1e-6) -> None:
    """Compare two recorded sequences: the order of the events first, then what each of them brought."""
    names, expected = [each["event"] for each in ours], [each["event"] for each in theirs]
    at = next((index for index, pair in enumerate(zip(names, expected, strict=False)) if pair[0] != pair[1]), None)
    if at is None and len(names) != len(expected):
        at = min(len(names), len(expected))
    assert at is None, (
        f"event {at}: ... {names[max(0, at - 6) : at + 4]} instead of {expected[max(0, at - 6) : at + 4]}"
    )
    found = difference(ours, theirs, tolerance)
    assert found is None, found
