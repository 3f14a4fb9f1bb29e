"""The share of texts that equal their references, after what does not matter is taken away."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Sequence
from typing import Any, Final

from headstart.errors import RecipeError
from headstart.evaluate.columns import TEXT
from headstart.evaluate.definition import MetricDefinition

__all__ = ["strip_text", "text_match_metrics"]

_NO_PUNCTUATION: Final = str.maketrans("", "", string.punctuation)
_NO_DIGITS: Final = str.maketrans("", "", string.digits)


def text_match_metrics() -> Iterator[MetricDefinition]:
    """Give exact_match."""
    columns = {"predictions": TEXT, "references": TEXT}
    text = "Share of texts that equal their references."
    yield MetricDefinition(
        "exact_match", text, "https://huggingface.co/spaces/evaluate-metric/exact_match", columns, _exact_match
    )


def strip_text(
    text: str,
    regexes: Sequence[re.Pattern[str]] = (),
    *,
    ignore_case: bool = False,
    ignore_punctuation: bool = False,
    ignore_numbers: bool = False,
) -> str:
    """Take away what does not matter: first the matches of the expressions, in their order.

    Example:
        >>> strip_text("The Cat, 3", [re.compile("The ")], ignore_case=True, ignore_punctuation=True)
        'cat 3'
    """
    for regex in regexes:
        text = regex.sub("", text)
    if ignore_case:
        text = text.lower()
    if ignore_punctuation:
        text = text.translate(_NO_PUNCTUATION)
    return text.translate(_NO_DIGITS) if ignore_numbers else text


def _exact_match(
    predictions: list[str],
    references: list[str],
    regexes_to_ignore: Sequence[str] | None = None,
    ignore_case: bool = False,
    ignore_punctuation: bool = False,
    ignore_numbers: bool = False,
) -> dict[str, Any]:
    regexes = _compiled(regexes_to_ignore or ())

    def strip(text: str) -> str:
        return strip_text(
            text,
            regexes,
            ignore_case=ignore_case,
            ignore_punctuation=ignore_punctuation,
            ignore_numbers=ignore_numbers,
        )

    same = [strip(given) == strip(right) for given, right in zip(predictions, references, strict=True)]
    return {"exact_match": sum(same) / len(same)}


def _compiled(regexes: Sequence[str]) -> list[re.Pattern[str]]:
    if isinstance(regexes, str):
        # Its characters would be taken one by one.
        raise RecipeError(
            f"regexes_to_ignore is the text {regexes!r}.", "a list of regular expressions.", f"Give [{regexes!r}]."
        )
    compiled = []
    for regex in regexes:
        try:
            compiled.append(re.compile(regex))
        except (re.error, TypeError) as error:
            raise RecipeError(
                f"regexes_to_ignore: {regex!r} is no regular expression ({error}).",
                "one in Python's syntax.",
                "Escape what is meant literally with re.escape(...).",
            ) from error
    return compiled
