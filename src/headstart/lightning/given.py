"""What the user has set, by the names of a recipe, and who decides it: the data module, the module, or the Trainer.

Imports layer 0 only.

    recipe file, settings, keywords -> given values {"optim.learning_rate": 2e-5} -> merged -> Recipe
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from headstart.errors import RecipeError, join_faults
from headstart.recipe import Recipe, build_recipe

__all__ = ["Given", "GivenRecipe", "as_sections", "collect", "merge", "of_the_model"]

Given = dict[str, Any]
"""Values that the user has set, "section.key" to value; what is not in it has its default."""
GivenRecipe = str | Path | Recipe | Mapping[str, Any] | None
"""A YAML file, a recipe, or its sections as dicts."""

# The rows and their batches: settled where they are read.
_OF_THE_DATA = ("data.", "task.", "model.checkpoint", "model.revision", "train.batch_size", "train.tokens_per_batch",
                "train.order", "train.seed", "evaluate.batch_size")  # fmt: skip
# What a checkpoint of Lightning keeps: the rest belongs to the training that wrote it.
_OF_THE_MODEL = ("model.", "optim.", "train.fast", "train.seed", "evaluate.scores", "evaluate.confidence",
                 "evaluate.baselines")  # fmt: skip


def collect(recipe: GivenRecipe, settings: Sequence[str], values: Mapping[str, Any]) -> Given:
    """Put together what was set in the ways that there are; single values win over the recipe.

    Args:
        recipe: see `GivenRecipe`.
        settings: texts such as "optim.momentum=0.8".
        values: "section.key" to value; None values are left out.

    Raises:
        RecipeError: with all faults.

    Example:
        >>> collect({"optim": {"name": "sgd"}}, ["optim.momentum=0.8"], {"train.seed": 3, "train.batch_size": None})
        {'optim.momentum': 0.8, 'optim.name': 'sgd', 'train.seed': 3}
    """
    file: Path | None = None
    given: Given = {}
    if isinstance(recipe, Recipe):
        given = _flat(recipe)
    elif isinstance(recipe, Mapping):
        given = {f"{section}.{key}": value for section, keys in recipe.items() for key, value in dict(keys).items()}
    elif recipe is not None:
        file = Path(recipe).expanduser()
    own = {key: value for key, value in values.items() if value is not None}
    from_settings = {setting.partition("=")[0].strip() for setting in settings}
    kept = {key: value for key, value in given.items() if key not in from_settings and key not in own}
    return _flat(build_recipe(file, settings, {**kept, **own}))


def merge(data: Given, module: Given, effective: Recipe) -> Recipe:
    """Put together what data module and module were given.

    Args:
        data: of the data module.
        module: of the module.
        effective: the data module's recipe, with its defaults.

    Raises:
        RecipeError: the two disagree, or the module was given what the data module decides; all of it in one message.
    """
    faults = []
    for key, value in module.items():
        section, _, name = key.partition(".")
        if key in data and data[key] != value:
            faults.append(f"{key} is {data[key]!r} in TaskDataModule and {value!r} in TaskModule")
        elif key not in data and key.startswith(_OF_THE_DATA):
            holder = getattr(effective, section)
            there = holder.columns.get(name.partition(".")[2]) if name.startswith("columns.") else getattr(holder, name)
            if there != value:
                faults.append(f"{key} is {value!r} in TaskModule, but {there!r} in TaskDataModule, which decides it")
    if faults:
        raise RecipeError(
            f"TaskDataModule and TaskModule were given different settings:\n{join_faults(faults)}",
            "one value each.",
            "Give rows, batches, seed and the model's checkpoint to TaskDataModule alone, or the same recipe to both.",
        )
    return build_recipe(values={**module, **data})


def of_the_model(given: Given) -> Given:
    """Keep what a model is to be and how it learns, without the rows and without what a Trainer decides."""
    return {key: value for key, value in given.items() if key.startswith(_OF_THE_MODEL)}


def as_sections(given: Given) -> dict[str, dict[str, Any]]:
    """Give values section by section, as plain dicts.

    Example:
        >>> as_sections({"optim.name": "sgd", "optim.momentum": 0.9})
        {'optim': {'name': 'sgd', 'momentum': 0.9}}
    """
    sections: dict[str, dict[str, Any]] = {}
    for key, value in given.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value
    return sections


def _flat(recipe: Recipe) -> Given:
    """Give what was set in a recipe, without the defaults that it has filled in."""
    given: Given = {}
    for section in Recipe.model_fields:
        holder = getattr(recipe, section)
        for name in sorted(holder.model_fields_set):
            value = getattr(holder, name)
            if f"{section}.{name}" == "data.columns":
                given.update({f"data.columns.{role}": column for role, column in value.items()})
            else:
                given[f"{section}.{name}"] = value
    return given
