"""What a metric is, apart from the rows that it has been given: columns, options, and the function that scores.

Imports layer 0 and `columns`.

    rows by column + options  ->  MetricDefinition.compute  ->  {"accuracy": 0.83}
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from headstart.errors import DataError, HeadstartError, RecipeError, suggest
from headstart.evaluate.columns import ANYTHING, Kind

__all__ = ["MetricDefinition", "Rows", "Score", "define_own"]

Rows = dict[str, list[Any]]
Score = Callable[..., dict[str, Any]]


@dataclass(frozen=True)
class MetricDefinition:
    """A metric with one of its configurations.

    Args:
        name: as given to `load`.
        config: of its configurations; `"default"` where it has one only.
        description: one sentence.
        citation: where it comes from.
        columns: what each column holds.
        score: takes the columns and the options by name.
        check: raises DataError where rows of different columns do not go together.
        is_own: the function is the user's, so its errors are shown as they are.
    """

    name: str
    description: str
    citation: str
    columns: Mapping[str, Kind]
    score: Score
    config: str = "default"
    check: Callable[[Rows], None] | None = None
    is_own: bool = False

    @property
    def options(self) -> dict[str, str] | None:
        """Names of the options and their defaults as text; None where the function takes any."""
        parameters = inspect.signature(self.score).parameters.values()
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            return None
        return {
            parameter.name: repr(parameter.default) for parameter in parameters if parameter.name not in self.columns
        }

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Refuse an option that the metric does not have.

        Raises:
            RecipeError: with the nearest name.
        """
        known = self.options
        unknown = [] if known is None else [name for name in options if name not in known]
        if unknown:
            raise RecipeError(
                f"{self.name} has no option {unknown[0]!r}.",
                "an option of this metric, or one of its columns: " + ", ".join(self.columns) + ".",
                suggest(unknown[0], [*(known or {}), *self.columns]),
            )

    def compute(self, rows: Rows, options: Mapping[str, Any]) -> dict[str, Any]:
        """Score rows that have been read and checked.

        Raises:
            DataError: the score is not defined for these rows with these options.
        """
        try:
            scores = self.score(**rows, **options)
        except HeadstartError:
            raise
        except (AssertionError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            if self.is_own:
                raise
            reason = " ".join(str(error).split())[:400] or type(error).__name__
            given = ", ".join(f"{name}={value!r}" for name, value in options.items()) or "the defaults"
            raise DataError(
                f"{self.name} cannot be computed: {reason}",
                "rows and options for which the score is defined.",
                f"Check the rows and the options ({given[:200]}).",
            ) from error
        if not isinstance(scores, Mapping):
            raise RecipeError(
                f"The function {self.name} has returned {type(scores).__name__}.",
                "a dict of score names and values.",
                f'Return {{"{self.name}": value}}.',
            )
        return dict(scores)


def define_own(function: Callable[..., Any]) -> MetricDefinition:
    """Make a metric of the user's own function.

    Args:
        function: takes `predictions` and `references` (or one of them) and options by name, and returns a dict.

    Raises:
        RecipeError: it takes neither, or needs something else.

    Example:
        >>> define_own(lambda predictions, references: {"same": predictions == references}).columns.keys()
        dict_keys(['predictions', 'references'])
    """
    name = str(getattr(function, "__name__", type(function).__name__)).strip("<>")
    parameters = inspect.signature(function).parameters
    columns = {
        column: ANYTHING
        for column in ("predictions", "references")
        if column in parameters and parameters[column].kind is not inspect.Parameter.POSITIONAL_ONLY
    }
    if not columns:
        raise RecipeError(
            f"The function {name}({', '.join(parameters)}) cannot be a metric.",
            "parameters named predictions and references.",
            "Write: def my_score(predictions, references, **options): return {...}",
        )
    source = getattr(function, "__module__", None) or "your own function"
    description = (inspect.getdoc(function) or f"The function {name}.").strip().split("\n")[0]
    return MetricDefinition(name, description, source, columns, function, is_own=True)
