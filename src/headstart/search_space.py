"""What a search tries: a setting and its values, in words and as Optuna takes them.

Layer 4; imports layer 0. A space is small on purpose: each setting more asks for more trials.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from headstart.errors import RecipeError
from headstart.recipe import Recipe, build_recipe

__all__ = ["SearchSetting", "as_text", "default_space", "read_setting", "setting_from"]

LOG_FROM_RATIO = 10
"""A range whose ends differ by this factor is searched by its logarithm."""

Value = int | float | str | bool | None


@dataclass(frozen=True)
class SearchSetting:
    """A setting of the recipe, and the values that are tried.

    Args:
        key: "section.key".
        low: the smallest number; None where there are choices.
        high: the largest number.
        choices: the values, where they are no range.
        is_whole: whether numbers are whole.

    Example:
        >>> print(read_setting("optim.learning_rate=1e-5..1e-3"))
        optim.learning_rate from 1e-05 to 0.001, by its logarithm
        >>> print(read_setting("train.batch_size=16,32"))
        train.batch_size: 16, 32
    """

    key: str
    low: float | None = None
    high: float | None = None
    choices: tuple[Value, ...] = ()
    is_whole: bool = False

    @property
    def by_logarithm(self) -> bool:
        """Whether the range is searched by its logarithm."""
        return self.low is not None and self.high is not None and 0 < self.low * LOG_FROM_RATIO <= self.high

    def suggest(self, trial: Any) -> Value:
        """Take a value from a trial of Optuna.

        Args:
            trial: `optuna.Trial`.
        """
        if self.choices:
            value: Value = yaml.safe_load(trial.suggest_categorical(self.key, [as_text(each) for each in self.choices]))
            return value
        if self.is_whole:
            number: int = trial.suggest_int(self.key, int(self.low or 0), int(self.high or 0), log=self.by_logarithm)
            return number
        share: float = trial.suggest_float(self.key, self.low, self.high, log=self.by_logarithm)
        return float(f"{share:.4g}")

    def to_dict(self) -> dict[str, Any]:
        """Give what `setting_from` takes back."""
        if self.choices:
            return {"choices": list(self.choices)}
        kind = int if self.is_whole else float
        return {"low": kind(self.low or 0), "high": kind(self.high or 0)}

    def __str__(self) -> str:
        """Write it for people."""
        if self.choices:
            return f"{self.key}: {', '.join(str(choice) for choice in self.choices)}"
        scale = ", by its logarithm" if self.by_logarithm else ""
        return f"{self.key} from {self.low:g} to {self.high:g}{scale}"


def as_text(choice: Value) -> str:
    """Write a choice as Optuna stores it: text, of which YAML says what it is.

    Example:
        >>> as_text(None), as_text("10%"), as_text("1")
        ('null', '10%', "'1'")
    """
    text: str = yaml.safe_dump(choice, default_flow_style=True)
    return text.splitlines()[0]


def setting_from(key: str, values: object) -> SearchSetting:
    """Make a setting of what somebody wrote in Python: `(low, high)`, a list of values, or what `to_dict` gave.

    Raises:
        RecipeError: it is neither, the key is unknown, or a value does not fit it.

    Example:
        >>> setting_from("train.epochs", (1, 4)).is_whole, setting_from("optim.warmup", [0, "6%"]).choices
        (True, (0, '6%'))
    """
    if isinstance(values, Mapping):
        values = list(values["choices"]) if "choices" in values else (values["low"], values["high"])
    if isinstance(values, tuple) and len(values) == 2 and all(_is_number(value) for value in values):
        low, high = values
        if not low < high or not math.isfinite(high - low):
            raise RecipeError(f"{key}: {low} to {high} is no range.", "the smaller number first.", "Turn them round.")
        is_whole = isinstance(low, int) and isinstance(high, int)
        setting = SearchSetting(key, float(low), float(high), is_whole=is_whole)
        tried: Sequence[Any] = values
    elif isinstance(values, list | tuple) and len(values) > 1:
        setting, tried = SearchSetting(key, choices=tuple(values)), values
    else:
        raise RecipeError(
            f"{key}: {values!r} gives nothing to choose from.",
            "a range, or two values and more.",
            "Write KEY=LOW..HIGH or KEY=A,B,C; in Python (low, high) or [a, b, c].",
        )
    for value in tried:
        build_recipe(values={key: value})  # says what is wrong with the key or the value
    return setting


def read_setting(text: str) -> SearchSetting:
    """Read `KEY=LOW..HIGH` or `KEY=A,B,C`.

    Raises:
        RecipeError: it cannot be read, or does not fit the recipe.
    """
    key, equals, rest = (part.strip() for part in text.partition("="))
    if not equals or "." not in key:
        raise RecipeError(
            f"--search {text}: this is no setting with its values.",
            "SECTION.KEY=LOW..HIGH or SECTION.KEY=A,B,C.",
            "Write for example --search optim.learning_rate=1e-5..1e-3",
        )
    ends = re.fullmatch(r"(\S+?)\s*\.\.\s*(\S+)", rest)
    if ends is not None:
        return setting_from(key, (_read(ends[1]), _read(ends[2])))
    return setting_from(key, [_read(part.strip()) for part in rest.split(",")])


def _read(text: str) -> Any:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)  # YAML 1.1 takes 1e-5 for a text
    except ValueError:
        return yaml.safe_load(text)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def default_space(recipe: Recipe, fixed: Sequence[str]) -> list[SearchSetting]:
    """Give the settings that decide most, around the recipe's own values.

    The learning rate within a factor of 4, the batch size with its half and its double, one epoch less to two more, and
    a warm-up or none.

    Args:
        recipe: of the run, with its learning rate filled in.
        fixed: keys that the user has set, which are not searched.

    Example:
        >>> recipe = build_recipe(values={"optim.learning_rate": 2e-4})
        >>> [setting.key for setting in default_space(recipe, fixed=["train.epochs"])]
        ['optim.learning_rate', 'train.batch_size', 'optim.warmup']

    Source: which settings matter most when BERT is fine-tuned, and their ranges: Devlin et al. 2019, appendix A.3;
    Mosbach et al. 2021, On the Stability of Fine-tuning BERT (warm-up, epochs).
    """
    rate, epochs, size = recipe.optim.peak_learning_rate, recipe.train.epochs, recipe.train.batch_size
    space = [SearchSetting("optim.learning_rate", rate / 4, rate * 4)]
    if size is not None:
        space.append(
            SearchSetting("train.batch_size", choices=tuple(dict.fromkeys([max(1, size // 2), size, size * 2])))
        )
    if epochs is not None and recipe.train.max_steps is None and epochs == int(epochs):
        space.append(SearchSetting("train.epochs", max(1.0, epochs - 1), epochs + 2, is_whole=True))
    if recipe.optim.schedule in ("linear", "cosine", "polynomial"):
        space.append(SearchSetting("optim.warmup", choices=(0, "10%")))
    return [setting for setting in space if setting.key not in fixed]
