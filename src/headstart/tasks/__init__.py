"""The tasks: one file each, behind one small interface."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from headstart.errors import CheckpointError
from headstart.tasks.interface import Task
from headstart.tasks.sequence_classification import SequenceClassification

__all__ = ["TASKS", "SequenceClassification", "Task", "task_from_dict"]

TASKS: Final = {"sequence_classification": SequenceClassification}


def task_from_dict(values: Mapping[str, Any]) -> SequenceClassification:
    """Build the task that a `task.json` describes.

    Raises:
        CheckpointError: no such task is known.
    """
    name = str(values.get("task", "")).partition(".")[0]
    if name not in TASKS:
        raise CheckpointError(
            f"task.json holds {values.get('task')!r}.",
            f"one of: {', '.join(TASKS)}.",
            "Open the run with the version of headstart that wrote it.",
        )
    return TASKS[name].from_dict(values)
