"""The records of a run, and how they go into JSON and come back.

Layer 0: imports the standard library only. A record is one line of `log.jsonl`:

    {"record": "step", "step": 12, "epoch": 0.03, "loss": 0.61, "learning_rate": 4.9e-05, ...}
    {"record": "evaluation", "step": 12, "epoch": 0.03, "split": "validation", "scores": {...}, ...}

Every line is strict JSON: the numbers that JSON does not know are the strings "nan", "inf", "-inf".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol, TypeAlias, get_args

from headstart.errors import CheckpointError

__all__ = [
    "CheckpointRecord",
    "EvaluationRecord",
    "Record",
    "Report",
    "StepRecord",
    "StopReason",
    "StopRecord",
    "WarningRecord",
    "from_json",
    "to_json",
]

StopReason: TypeAlias = Literal["done", "requested", "early_stopping", "time_limit", "non_finite", "process_lost"]


@dataclass(frozen=True)
class StepRecord:
    """One optimizer update.

    Args:
        step: number of updates made so far, this one included.
        epoch: passes over the training rows so far; 0.5 is half of the first.
        loss: mean over the targets of the update.
        learning_rate: of this update.
        grad_norm: 2-norm of all gradients before clipping.
        rows: rows of the update.
        tokens: their tokens, padding not counted.
        seconds: wall time since the step before; data and logging included, evaluation and saving
            apart.
    """

    step: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float
    rows: int
    tokens: int
    seconds: float


@dataclass(frozen=True)
class EvaluationRecord:
    """Scores of the model as it was after `step` updates.

    Args:
        step: updates made so far.
        epoch: passes over the training rows so far.
        split: the rows scored, such as "validation".
        scores: name to value.
        seconds: wall time of the evaluation.
        best: no evaluation before was better.
    """

    step: int
    epoch: float
    split: str
    scores: dict[str, float]
    seconds: float
    best: bool


@dataclass(frozen=True)
class CheckpointRecord:
    """A checkpoint was written.

    Args:
        step: updates made so far.
        path: relative to the run folder, such as "checkpoints/step-000500".
        best: it belongs to the best evaluation so far.
    """

    step: int
    path: str
    best: bool


@dataclass(frozen=True)
class WarningRecord:
    """Something that the user should know.

    Args:
        step: updates made so far.
        kind: one word for programs, such as "out_of_memory".
        message: a sentence for people.
        rows: numbers of the training rows concerned, if any.
    """

    step: int
    kind: str
    message: str
    rows: list[int]


@dataclass(frozen=True)
class StopRecord:
    """Training ended.

    Args:
        step: updates made.
        reason: one word for programs.
        message: a sentence for people.
        seconds: training time of the whole run.
    """

    step: int
    reason: StopReason
    message: str
    seconds: float


Record: TypeAlias = StepRecord | EvaluationRecord | CheckpointRecord | WarningRecord | StopRecord


class Report(Protocol):
    """Whoever wants to know how far something is: gets what is done now, the rows done so far, and the rows in all."""

    def __call__(self, text: str, done: int, total: int) -> None:
        """Take the news; `total` is 0 where nothing is counted."""


_RECORD_TYPES: dict[str, type[Record]] = {
    "step": StepRecord,
    "evaluation": EvaluationRecord,
    "checkpoint": CheckpointRecord,
    "warning": WarningRecord,
    "stop": StopRecord,
}
_RECORD_NAMES = {record_type: name for name, record_type in _RECORD_TYPES.items()}


def to_json(record: Record) -> dict[str, Any]:
    """Give a record as values of strict JSON, its kind first.

    Example:
        >>> to_json(CheckpointRecord(500, "checkpoints/step-000500", best=True))
        {'record': 'checkpoint', 'step': 500, 'path': 'checkpoints/step-000500', 'best': True}
    """
    values: dict[str, Any] = {"record": _RECORD_NAMES[type(record)]}
    for field in fields(record):
        encode, _ = _CODECS[str(field.type)]
        values[field.name] = encode(getattr(record, field.name))
    return values


def from_json(values: Mapping[str, Any]) -> Record:
    """Build the record that `to_json` was given.

    Fields that it does not know, which a later version may have added, are left out.

    Raises:
        CheckpointError: the kind is unknown, or a field is missing or of another type.

    Example:
        >>> from_json({"record": "checkpoint", "step": 5, "path": "checkpoints/a", "best": True})
        CheckpointRecord(step=5, path='checkpoints/a', best=True)
    """
    kind = values.get("record")
    if not isinstance(kind, str) or kind not in _RECORD_TYPES:
        raise CheckpointError(f"The kind of a record is {kind!r}.", f"one of {', '.join(_RECORD_TYPES)}.")
    record_type = _RECORD_TYPES[kind]
    decoded: dict[str, Any] = {}
    for field in fields(record_type):
        _, decode = _CODECS[str(field.type)]
        try:
            decoded[field.name] = decode(values[field.name])
        except (KeyError, TypeError, ValueError) as error:
            found = repr(values[field.name]) if field.name in values else "missing"
            raise CheckpointError(f'A "{kind}" record: {field.name} is {found}.', f"{field.type}.") from error
    return record_type(**decoded)


def _encode_float(value: float) -> float | str:
    number = float(value)
    return number if math.isfinite(number) else str(number)


def _decode_float(value: object) -> float:
    if isinstance(value, str) and value in ("nan", "inf", "-inf"):
        return float(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise TypeError(value)


def _decode_int(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise TypeError(value)


def _decode_bool(value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise TypeError(value)


def _decode_text(value: object) -> str:
    if isinstance(value, str):
        return value
    raise TypeError(value)


def _decode_rows(value: object) -> list[int]:
    if isinstance(value, list):
        return [_decode_int(row) for row in value]
    raise TypeError(value)


def _decode_scores(value: object) -> dict[str, float]:
    if isinstance(value, dict):
        return {_decode_text(name): _decode_float(score) for name, score in value.items()}
    raise TypeError(value)


def _decode_reason(value: object) -> str:
    if value in get_args(StopReason):
        return str(value)
    raise ValueError(value)


# Annotation of a record's field -> how it goes into JSON and comes back.
_CODECS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "int": (int, _decode_int),
    "float": (_encode_float, _decode_float),
    "bool": (bool, _decode_bool),
    "str": (str, _decode_text),
    "list[int]": (lambda rows: [int(row) for row in rows], _decode_rows),
    "dict[str, float]": (
        lambda scores: {str(name): _encode_float(scores[name]) for name in scores},
        _decode_scores,
    ),
    "StopReason": (str, _decode_reason),
}
