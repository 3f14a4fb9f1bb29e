"""The recipe: everything that decides a run, in six small typed sections and the task's own.

Imports the standard library, pydantic, yaml and layer 0. The same names hold in YAML, on the command line
(`--set train.epochs=5`), in Python and in the `recipe.yaml` of a run:

    task      what is learned                     model    what training starts from
    data      rows, columns, limits               optim    how an update is made
    train     how long, in which batches, where   evaluate what is measured
    output    where the run goes

`null` means "does not apply" and is always allowed; a value that the user sets and that has no effect is an error. The
sections themselves are in `recipe_sections`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from headstart.addresses import mask
from headstart.errors import RecipeError, join_faults, nearest_name, suggest
from headstart.optim_numbers import OPTIMIZERS
from headstart.recipe_sections import (
    DataSection,
    EvaluateSection,
    LoraSection,
    ModelSection,
    OptimSection,
    OutputSection,
    TaskSection,
    TrainSection,
)

__all__ = ["SOURCES", "Recipe", "build_recipe", "read_recipe_file"]

SOURCES = ("train", "validation", "test")
# Taken as they stand on the command line: YAML reads "|" and "~" as something else.
_VERBATIM = ("data.delimiter", "data.query")


class Recipe(BaseModel):
    """Everything that decides a run.

    Example:
        >>> recipe = build_recipe(values={"train.epochs": 2, "optim.name": "sgd"})
        >>> recipe.train.epochs, recipe.optim.momentum
        (2.0, 0.9)
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: TaskSection = Field(default_factory=TaskSection)
    data: DataSection = Field(default_factory=DataSection)
    model: ModelSection = Field(default_factory=ModelSection)
    optim: OptimSection = Field(default_factory=OptimSection)
    train: TrainSection = Field(default_factory=TrainSection)
    evaluate: EvaluateSection = Field(default_factory=EvaluateSection)
    output: OutputSection = Field(default_factory=OutputSection)

    @model_validator(mode="after")
    def _agree(self) -> Recipe:
        if self.data.validation is not None and self.data.validation_fraction is not None:
            raise ValueError(
                "data.validation_fraction has no effect, because data.validation names the rows. Remove one of them"
            )
        self._agree_on_plateau()
        if self.model.freeze == "encoder" and self.optim.layer_decay is not None:
            raise ValueError("optim.layer_decay has no effect with model.freeze = encoder: the head alone is trained")
        if self.model.lora is not None and (self.model.freeze is not None or self.model.unfreeze_every is not None):
            name = "freeze" if self.model.freeze is not None else "unfreeze_every"
            raise ValueError(
                f"model.{name} has no effect with model.lora, which trains adapters and head alone. Remove one of them"
            )
        if self.model.unfreeze_every is not None and OPTIMIZERS[self.optim.name].by_group:
            raise ValueError(
                f"model.unfreeze_every does not go with {self.optim.name}, which counts its updates for all parameters "
                "together. Choose another optim.name, such as adamw"
            )
        return self

    def _agree_on_plateau(self) -> None:
        if self.optim.schedule != "plateau":
            return
        if self.train.evaluate_every is None:
            raise ValueError(
                "the plateau schedule follows the evaluations, and there are none (train.evaluate_every is null)"
            )
        if self.train.best == "last":
            raise ValueError(
                'the plateau schedule follows the score of train.best, which is "last". Name a score, such as log_loss'
            )
        waits = (self.optim.plateau_patience or 0) + 1
        if self.train.patience is not None and self.train.patience <= waits:
            raise ValueError(
                f"the plateau schedule has no effect: training stops after {self.train.patience} evaluations without a "
                f"better score (train.patience), and the learning rate falls after {waits}. Set train.patience to "
                f"{waits + 1} or more, or a smaller optim.plateau_patience"
            )

    def replace(self, values: Mapping[str, object]) -> Recipe:
        """Make a recipe with other values ("section.key" to value), checked anew."""
        data = self.model_dump()
        for key, value in values.items():
            section, _, field = key.partition(".")
            data[section][field] = value
        return _validate(data)

    def to_yaml(self, derived: Mapping[str, object] | None = None) -> str:
        """Write the recipe with every default filled in, without secrets, and what followed from it under `derived`."""
        data = self.model_dump(mode="json")
        data["data"] |= {name: mask(data["data"][name]) for name in SOURCES if data["data"][name] is not None}
        if derived is not None:
            data["derived"] = dict(derived)
        return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)


def read_recipe_file(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a recipe file.

    Returns:
        Its sections, and the `derived` section (empty where there is none).

    Raises:
        RecipeError: the file is missing, is not YAML, or does not hold sections.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"{path}: the recipe cannot be read ({getattr(error, 'strerror', None) or error}).",
            "a YAML file in UTF-8.",
            "Check the path given with --recipe.",
        ) from error
    try:
        data = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        raise RecipeError(
            f"{path}: not valid YAML{where}.", "sections such as `train:`, with keys below them."
        ) from error
    if not isinstance(data, dict) or not all(isinstance(value, dict | None) for value in data.values()):
        raise RecipeError(
            f"{path}: a recipe holds sections, but this file holds something else.",
            f"sections ({', '.join(Recipe.model_fields)}) with keys below them.",
            "Write for example:\ntrain:\n  epochs: 3",
        )
    derived = data.pop("derived", None) or {}
    return {section: dict(values or {}) for section, values in data.items()}, derived


def build_recipe(
    file: Path | None = None, settings: Sequence[str] = (), values: Mapping[str, object] | None = None
) -> Recipe:
    """Build a recipe from a file, `section.key=value` settings, and single values; later ones win over the file.

    Args:
        file: a YAML file with sections.
        settings: texts such as `"train.epochs=5"`; the value is read as YAML.
        values: "section.key" to value, as the command's flags and `finetune()` give them.

    Raises:
        RecipeError: with all faults: unknown sections and keys (nearest name), wrong types, values out of range,
            contradictions, options without effect, and one key set to two values.

    Example:
        >>> build_recipe(settings=["optim.learning_rate=2e-5"]).optim.learning_rate
        2e-05
    """
    data: dict[str, Any] = read_recipe_file(file)[0] if file is not None else {}
    faults: list[str] = []
    given: dict[str, object] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        key = key.strip()
        if not equals or key.count(".") < 1:
            faults.append(f'--set {setting}: expected section.key=value, for example "train.epochs=5"')
            continue
        if key in _VERBATIM and text != "null" and text[:1] not in ("'", '"'):
            given[key] = text
            continue
        try:
            given[key] = yaml.safe_load(text)
        except yaml.YAMLError:
            given[key] = text
    for key, value in (values or {}).items():
        if key in given and str(given[key]) != str(value):
            both = [mask(str(one)) if isinstance(one, str) else one for one in (given[key], value)]
            faults.append(f"{key}: set to {both[0]!r} with --set and to {both[1]!r} by its own option. Keep one")
        given[key] = value
    for key, value in given.items():
        _put(data, key.split("."), value, faults)
    return _validate(data, faults)


def _put(data: dict[str, Any], path: list[str], value: object, faults: list[str]) -> None:
    for part in path[:-1]:
        if data.get(part) is None:
            data[part] = {}
        nested = data[part]
        if not isinstance(nested, dict):
            faults.append(f"{'.'.join(path)}: {part} has no keys below it")
            return
        data = nested
    data[path[-1]] = value


def _validate(data: dict[str, Any], faults: Sequence[str] = ()) -> Recipe:
    faults = list(faults)
    recipe: Recipe | None = None
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        faults += [_explain(dict(fault)) for fault in error.errors()]
    if faults or recipe is None:
        count = "one fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise RecipeError(
            f"The recipe has {count}:\n{join_faults(faults)}",
            "the sections and keys of docs/recipe.md.",
            "Mend the lines above; nothing was started.",
        )
    return recipe


def _explain(fault: dict[str, Any]) -> str:
    """Say one fault that pydantic found in the words of the recipe."""
    path = [str(part) for part in fault["loc"] if not str(part).startswith(("function-", "constrained-"))]
    kind, value, context = fault["type"], fault.get("input"), fault.get("ctx", {})
    section = Recipe.model_fields.get(path[0]) if path else None
    fields: list[str] = []
    if section is not None and section.annotation is not None:
        fields = list(section.annotation.model_fields)
        inner = path[1:] if path[:2] == ["model", "lora"] else path[:0]
        if len(inner) > 1:  # a section inside a section
            fields = list(LoraSection.model_fields)
        # A union's branch (int, str) is no part of the name that the user wrote.
        path = ["model.lora", inner[1]] if len(inner) > 1 else [path[0], *[part for part in path[1:2]]]
    name = ".".join(path)
    if kind == "extra_forbidden":
        if section is None:
            return f"{name}: no such section. {suggest(name, list(Recipe.model_fields))}"
        elsewhere = _section_with(path[1]) if nearest_name(path[1], fields) is None else None
        hint = f"It is in section {elsewhere}: {elsewhere}.{path[1]}." if elsewhere else suggest(path[1], fields)
        return f"{name}: no such key. {hint}"
    if kind == "value_error":
        reason = f"{str(context['error']).rstrip('.')}."
        return f"{name}: {reason}" if name else reason
    if kind == "literal_error":
        field = section.annotation.model_fields.get(path[1]) if section and section.annotation and path[1:] else None
        # pydantic leaves the middle out of many choices.
        choices = _literals(field.annotation) if field is not None else []
        choices = choices or [choice.strip(" '") for choice in re.split(r",| or ", context["expected"])]
        return f"{name}: {value!r} is unknown. {suggest(str(value), choices)}"
    bounds = {
        "greater_than": "more than {gt:g}",
        "greater_than_equal": "at least {ge:g}",
        "less_than": "less than {lt:g}",
        "less_than_equal": "at most {le:g}",
    }
    if kind in bounds:
        return f"{name}: {value!r} is out of range. Expected {bounds[kind].format(**context)}."
    if isinstance(value, float) and not math.isfinite(value):
        return f"{name}: {value!r} is no usable number."
    message = str(fault["msg"]).removeprefix("Input should be ").rstrip(".")
    return f"{name}: {value!r} does not fit. Expected {message}."


def _literals(annotation: object) -> list[str]:
    """Give the texts that a field takes, where it takes some only."""
    if get_origin(annotation) is Literal:
        return [str(choice) for choice in get_args(annotation)]
    return [choice for part in get_args(annotation) for choice in _literals(part)]


def _section_with(field: str) -> str | None:
    for name, section in Recipe.model_fields.items():
        if section.annotation is not None and field in section.annotation.model_fields:
            return name
    return None
