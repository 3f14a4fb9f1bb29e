"""The tasks: one file each, behind one small interface."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from headstart.errors import CheckpointError, RecipeError
from headstart.tasks.interface import Task
from headstart.tasks.multi_label_classification import MultiLabelClassification
from headstart.tasks.regression import Regression
from headstart.tasks.sequence_classification import SequenceClassification
from headstart.tasks.texts import Columns

if TYPE_CHECKING:
    import datasets

    from headstart.recipe_sections import TaskSection

__all__ = [
    "TASKS",
    "MultiLabelClassification",
    "Regression",
    "SequenceClassification",
    "Task",
    "learn_task",
    "task_from_dict",
]

TASKS: Final[dict[str, Any]] = {
    task.name: task for task in (SequenceClassification, MultiLabelClassification, Regression)
}
_OPTIONS: Final = {
    "labels": ("sequence_classification", "multi_label_classification"),
    "ordinal": ("sequence_classification",),
    "delimiter": ("multi_label_classification",),
    "threshold": ("multi_label_classification",),
}


def learn_task(
    name: str, table: datasets.Dataset, columns: tuple[str, str | None, Columns], section: TaskSection
) -> Task:
    """Learn labels or numbers from the training rows.

    Args:
        name: of the task.
        table: the training rows.
        columns: of text, pair and label.
        section: what the recipe says of the task.

    Raises:
        LabelError: the labels do not allow training.
        RecipeError: an option has no effect with this task.
    """
    given = {option: value for option in _OPTIONS if (value := getattr(section, option)) is not None}
    for option in given:
        if name not in _OPTIONS[option]:
            raise RecipeError(
                f"task.{option} has no effect with {name}.",
                f"{' or '.join(_OPTIONS[option])}.",
                f"Remove task.{option}, or set task.name.",
            )
    text, pair, label = columns
    learned: Task = TASKS[name].learn_labels(table, text=text, pair=pair, label=label, **given)
    return learned


def task_from_dict(values: Mapping[str, Any]) -> Task:
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
    task: Task = TASKS[name].from_dict(values)
    return task
