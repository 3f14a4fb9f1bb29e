"""Scores of written texts against references: ROUGE, BLEU, and sacreBLEU.

Imports layer 0 and the modules beside it; rouge-score and sacrebleu (the extra `metrics`) inside functions.
"""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from headstart.errors import DataError, HeadstartWarning, RecipeError, suggest
from headstart.evaluate.columns import TEXT, TEXT_OR_TEXTS
from headstart.evaluate.definition import MetricDefinition
from headstart.evaluate.faults import import_optional

__all__ = ["corpus_bleu", "generation_metrics"]

Tokenizer = Callable[[str], Sequence[str]]

_ROUGE_TYPES: Final = ("rouge1", "rouge2", "rougeL", "rougeLsum")
_SMOOTHING: Final = ("exp", "floor", "add-k", "none")


def generation_metrics() -> Iterator[MetricDefinition]:
    """Give rouge, bleu and sacrebleu."""
    columns = {"predictions": TEXT, "references": TEXT_OR_TEXTS}
    text = "F1 of the n-grams and subsequences that a text shares with its reference, the mean over bootstrap samples."
    yield MetricDefinition("rouge", text, "Lin 2004, https://aclanthology.org/W04-1013", columns, _rouge)
    text = "Precision of n-grams over all texts, less for too short ones; 0 to 1."
    yield MetricDefinition("bleu", text, "Papineni et al. 2002, https://aclanthology.org/P02-1040", columns, _bleu)
    text = "BLEU as sacreBLEU tokenizes and counts; 0 to 100."
    yield MetricDefinition("sacrebleu", text, "Post 2018, https://aclanthology.org/W18-6319", columns, _sacrebleu)


class _CallableTokenizer:
    """Gives a function the method that rouge-score asks for."""

    def __init__(self, tokenize: Tokenizer) -> None:
        self.tokenize = tokenize


def _rouge(
    predictions: list[str],
    references: list[list[str]],
    rouge_types: Sequence[str] | None = None,
    use_aggregator: bool = True,
    use_stemmer: bool = False,
    tokenizer: Tokenizer | None = None,
) -> dict[str, Any]:
    types = list(_ROUGE_TYPES if rouge_types is None else rouge_types)
    _check_rouge_types(types)
    if tokenizer is not None and use_stemmer:
        warnings.warn(
            "rouge: use_stemmer has no effect where a tokenizer is given; stem the words in the tokenizer.",
            HeadstartWarning,
            stacklevel=2,
        )
    rouge_scorer = import_optional("rouge_score.rouge_scorer", "rouge")
    scorer = rouge_scorer.RougeScorer(
        types, use_stemmer=use_stemmer, tokenizer=None if tokenizer is None else _CallableTokenizer(tokenizer)
    )
    scores = [scorer.score_multi(right, given) for given, right in zip(predictions, references, strict=True)]
    if not use_aggregator:
        return {name: [float(score[name].fmeasure) for score in scores] for name in types}
    aggregator = import_optional("rouge_score.scoring", "rouge").BootstrapAggregator()
    for score in scores:
        aggregator.add_scores(score)
    return {name: float(interval.mid.fmeasure) for name, interval in aggregator.aggregate().items()}


def _check_rouge_types(types: Sequence[str]) -> None:
    unknown = [name for name in types if not re.fullmatch("rouge[1-9L]|rougeLsum", str(name))]
    if unknown or not types:
        name = str(unknown[0]) if unknown else ""
        raise RecipeError(
            f"rouge_types: {name!r}." if unknown else "rouge_types is empty.",
            "a list of rouge1 to rouge9, rougeL, rougeLsum.",
            suggest(name, _ROUGE_TYPES),
        )


def _bleu(
    predictions: list[str],
    references: list[list[str]],
    tokenizer: Tokenizer | None = None,
    max_order: int = 4,
    smooth: bool = False,
) -> dict[str, Any]:
    tokenize = _tokenizer_13a() if tokenizer is None else tokenizer
    return corpus_bleu(
        [tokenize(text) for text in predictions],
        [[tokenize(text) for text in right] for right in references],
        max_order=max_order,
        smooth=smooth,
    )


def _tokenizer_13a() -> Tokenizer:
    """Take sacrebleu's tokenizer of the WMT evaluations, which joins its tokens with blanks."""
    join: Callable[[str], str] = import_optional("sacrebleu.tokenizers.tokenizer_13a", "bleu").Tokenizer13a()
    return lambda text: join(text).split()


def corpus_bleu(
    predictions: Sequence[Sequence[str]],
    references: Sequence[Sequence[Sequence[str]]],
    *,
    max_order: int = 4,
    smooth: bool = False,
) -> dict[str, Any]:
    """Compute BLEU over all texts: matches and n-grams are summed over the texts, then divided.

    The length of several references is that of the shortest. With `smooth` one is added to both counts of every order,
    as evaluate does; the paper of the smoothing leaves the single words as they are.

    Args:
        predictions: the tokens of each text.
        references: for each text the tokens of one or more references.
        max_order: the longest n-gram.
        smooth: adds one.

    Returns:
        `bleu`, `precisions` (one an order), `brevity_penalty`, `length_ratio`, `translation_length`,
        `reference_length`.

    Raises:
        RecipeError: `max_order` is less than 1.
        DataError: the references have no token.

    Example:
        >>> corpus_bleu([["a", "cat", "sat"]], [[["the", "cat", "sat"]]], max_order=2)["precisions"]
        [0.6666666666666666, 0.5]

    Source: Papineni et al. 2002, https://aclanthology.org/P02-1040; Lin and Och 2004, https://aclanthology.org/C04-1072
    """
    if max_order < 1:
        raise RecipeError(f"max_order is {max_order}.", "a whole number from 1.", "Leave it out for 4.")
    matches, totals = [0] * max_order, [0] * max_order
    for given, right in zip(predictions, references, strict=True):
        for index in range(max_order):
            counts = _ngrams(given, index + 1)
            allowed: Counter[tuple[str, ...]] = Counter()
            for reference in right:
                allowed |= _ngrams(reference, index + 1)
            matches[index] += (counts & allowed).total()
            totals[index] += counts.total()
    length = sum(map(len, predictions))
    reference_length = sum(min(map(len, right)) for right in references)
    if reference_length == 0:
        raise DataError(
            "bleu: the references have no token, so the length of the predictions cannot be compared.",
            "references with at least one word.",
            "Leave out rows whose reference is empty.",
        )
    added = 1 if smooth else 0
    precisions = [
        (matched + added) / (total + added) if total + added else 0.0
        for matched, total in zip(matches, totals, strict=True)
    ]
    penalty = 0.0 if length == 0 else math.exp(min(0.0, 1 - reference_length / length))
    mean = math.exp(math.fsum(map(math.log, precisions)) / max_order) if min(precisions) > 0 else 0.0
    return {
        "bleu": mean * penalty,
        "precisions": precisions,
        "brevity_penalty": penalty,
        "length_ratio": length / reference_length,
        "translation_length": length,
        "reference_length": reference_length,
    }


def _ngrams(tokens: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[start : start + order]) for start in range(len(tokens) - order + 1))


def _sacrebleu(
    predictions: list[str],
    references: list[list[str]],
    smooth_method: str = "exp",
    smooth_value: float | None = None,
    force: bool = False,
    lowercase: bool = False,
    tokenize: str | None = None,
    use_effective_order: bool = False,
) -> dict[str, Any]:
    if smooth_method not in _SMOOTHING:
        raise RecipeError(
            f"smooth_method is {smooth_method!r}.", "a smoothing.", suggest(str(smooth_method), _SMOOTHING)
        )
    if smooth_value is not None and smooth_method in ("exp", "none"):
        warnings.warn(
            f'sacrebleu: smooth_value has no effect with smooth_method="{smooth_method}"; "floor" and "add-k" use it.',
            HeadstartWarning,
            stacklevel=2,
        )
    sacrebleu = import_optional("sacrebleu", "sacrebleu")
    if tokenize:
        _check_tokenizer(tokenize)
    counts = {len(right) for right in references}
    if len(counts) > 1:
        raise DataError(
            f"sacrebleu: the rows have from {min(counts)} to {max(counts)} references.",
            "as many references for each prediction.",
            'Give each row as many, or use load("bleu"), which takes any number.',
        )
    result = sacrebleu.corpus_bleu(
        predictions,
        [list(column) for column in zip(*references, strict=True)],
        smooth_method=smooth_method,
        smooth_value=smooth_value,
        force=force,
        lowercase=lowercase,
        use_effective_order=use_effective_order,
        **({"tokenize": tokenize} if tokenize else {}),
    )
    names = ("score", "counts", "totals", "precisions", "bp", "sys_len", "ref_len")
    return {name: getattr(result, name) for name in names}


def _check_tokenizer(name: str) -> None:
    """Refuse an unknown tokenizer, and one whose model sacrebleu would download."""
    known = list(import_optional("sacrebleu.metrics.bleu", "sacrebleu").BLEU.TOKENIZERS)
    if name not in known:
        raise RecipeError(f"tokenize is {name!r}.", "a tokenizer of sacrebleu.", suggest(str(name), known))
    models = import_optional("sacrebleu.tokenizers.tokenizer_spm", "sacrebleu")
    if name in models.SPM_MODELS:
        from pathlib import Path

        path = Path(models.SACREBLEU_DIR, "models", models.SPM_MODELS[name]["url"].rpartition("/")[2])
        if not path.exists():
            raise RecipeError(
                f"tokenize={name!r} needs a model that is not on this machine: {path}.",
                "its file at that place; nothing is downloaded here.",
                f'Fetch it once where there is a network: sacrebleu --tokenize {name} ..., or use tokenize="13a".',
            )
