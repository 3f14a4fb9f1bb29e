"""Scores of extracted answers: SQuAD 1.1 and 2.0.

Imports layer 0 and the modules beside it. Written from the published descriptions of the two evaluations:
https://arxiv.org/abs/1606.05250 (section 6.1) and https://arxiv.org/abs/1806.03822.

    answer text  ->  normalized  ->  exact match, and F1 over the bag of words, against the best of the references
"""

from __future__ import annotations

import re
import string
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from headstart.errors import DataError, HeadstartWarning
from headstart.evaluate.columns import Kind
from headstart.evaluate.definition import MetricDefinition

__all__ = ["best_threshold", "exact_match", "normalize_answer", "question_answering_metrics", "word_f1"]

_ARTICLES: Final = re.compile(r"\b(?:a|an|the)\b")
_NO_PUNCTUATION: Final = str.maketrans("", "", string.punctuation)
_PREDICTION: Final = '{"id": "...", "prediction_text": "..."}'
_PREDICTION_V2: Final = '{"id": "...", "prediction_text": "...", "no_answer_probability": 0.0}'
_REFERENCE: Final = '{"id": "...", "answers": {"text": ["..."], "answer_start": [0]}}'


class Judged(NamedTuple):
    """One question with its scores.

    Args:
        has_answer: whether the references hold an answer.
        is_answered: whether a text was predicted.
        no_answer: predicted probability that there is none.
        exact: 0 or 1.
        f1: 0 to 1.
    """

    has_answer: bool
    is_answered: bool
    no_answer: float
    exact: float
    f1: float


def question_answering_metrics() -> Iterator[MetricDefinition]:
    """Give squad and squad_v2."""
    columns = {"predictions": _kind(_prediction, _PREDICTION), "references": _kind(_reference, _REFERENCE)}
    text = "Exact match and F1 of answers, in percent."
    source = "Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250"
    yield MetricDefinition("squad", text, source, columns, _squad)
    columns = {"predictions": _kind(_prediction_v2, _PREDICTION_V2), "references": _kind(_reference, _REFERENCE)}
    text = "Exact match and F1 of answers to questions some of which have none, in percent."
    source = "Rajpurkar et al. 2018, https://arxiv.org/abs/1806.03822"
    yield MetricDefinition("squad_v2", text, source, columns, _squad_v2)


def normalize_answer(text: str) -> str:
    """Take away what does not make two answers differ: case, punctuation, articles, white space.

    Example:
        >>> normalize_answer("The  Eiffel-Tower!")
        'eiffeltower'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact_match(prediction: str, answer: str) -> float:
    """Compare two answers: 1 where they are the same after normalization, else 0."""
    return float(normalize_answer(prediction) == normalize_answer(answer))


def word_f1(prediction: str, answer: str) -> float:
    """Compute the F1 score of the words that two answers share; 0 where none is shared.

    Example:
        >>> word_f1("in Paris", "Paris")
        0.6666666666666666
    """
    given, right = normalize_answer(prediction).split(), normalize_answer(answer).split()
    shared = (Counter(given) & Counter(right)).total()
    if shared == 0:
        return 0.0
    precision, recall = shared / len(given), shared / len(right)
    return 2 * precision * recall / (precision + recall)


def best_threshold(questions: Sequence[Judged], score: Callable[[Judged], float]) -> tuple[float, float]:
    """Find the no-answer probability above which it is best to give no answer.

    Below the threshold an answer counts with its score; above it, a question counts as right if it has none.

    Args:
        questions: all of them.
        score: takes the score of a question out of it.

    Returns:
        The best mean score in percent, and the threshold; 0 where giving no answer at all is best.

    Example:
        >>> found = Judged(True, True, 0.2, 1.0, 1.0)
        >>> wrong = Judged(False, True, 0.9, 0.0, 0.0)
        >>> best_threshold([found, wrong], lambda question: question.exact)
        (100.0, 0.2)
    """
    total = best = float(sum(not question.has_answer for question in questions))
    threshold = 0.0
    for question in sorted(questions, key=lambda question: question.no_answer):
        if question.has_answer:
            total += score(question)
        elif question.is_answered:
            total -= 1
        if total > best:
            best, threshold = total, question.no_answer
    return 100.0 * best / len(questions), threshold


def _squad(predictions: list[dict[str, Any]], references: list[dict[str, Any]]) -> dict[str, Any]:
    texts = {id: given["prediction_text"] for id, given in _by_id(predictions).items()}
    missing = [right["id"] for right in references if right["id"] not in texts]
    if missing:
        warnings.warn(
            f"squad: {len(missing):,} questions have no prediction and score 0, the first with id {missing[0]!r}.",
            HeadstartWarning,
            stacklevel=2,
        )
    exact = f1 = 0.0
    for right in references:
        if not right["answers"]:
            raise DataError(
                f"squad: the question {right['id']!r} has no answer in references.",
                "at least one answer to each question.",
                'For questions without an answer use load("squad_v2").',
            )
        if right["id"] in texts:
            exact += max(exact_match(texts[right["id"]], answer) for answer in right["answers"])
            f1 += max(word_f1(texts[right["id"]], answer) for answer in right["answers"])
    return {"exact_match": 100.0 * exact / len(references), "f1": 100.0 * f1 / len(references)}


def _squad_v2(
    predictions: list[dict[str, Any]], references: list[dict[str, Any]], no_answer_threshold: float = 1.0
) -> dict[str, Any]:
    given = _by_id(predictions)
    missing = [right["id"] for right in references if right["id"] not in given]
    if missing:
        raise DataError(
            f"squad_v2: {len(missing):,} questions have no prediction, the first with id {missing[0]!r}.",
            "a prediction for each question in references.",
            'Give {"prediction_text": ""} for a question without an answer.',
        )
    # A question that stands there twice counts once.
    judged = {right["id"]: _judge(given[right["id"]], right["answers"]) for right in references}
    counted = [_without_answer(question, no_answer_threshold) for question in judged.values()]
    scores = _means(counted, "")
    scores |= _means([question for question in counted if question.has_answer], "HasAns_")
    scores |= _means([question for question in counted if not question.has_answer], "NoAns_")
    # Questions of equal probability are tried in the order of the predictions, as in the published program.
    questions = [judged[id] for id in given if id in judged]
    scores["best_exact"], scores["best_exact_thresh"] = best_threshold(questions, lambda question: question.exact)
    scores["best_f1"], scores["best_f1_thresh"] = best_threshold(questions, lambda question: question.f1)
    return scores


def _judge(given: dict[str, Any], answers: list[str]) -> Judged:
    text = given["prediction_text"]
    # References that normalize to nothing leave the empty answer as the right one.
    right = [answer for answer in answers if normalize_answer(answer)] or [""]
    exact = max(exact_match(text, answer) for answer in right)
    # Without words on one side there is nothing to share: both must be empty.
    empty = not normalize_answer(text) or right == [""]
    f1 = exact if empty else max(word_f1(text, answer) for answer in right)
    return Judged(bool(answers), bool(text), given["no_answer_probability"], exact, f1)


def _without_answer(question: Judged, threshold: float) -> Judged:
    """Take the answer away where its question more probably has none."""
    if question.no_answer <= threshold:
        return question
    score = float(not question.has_answer)
    return question._replace(exact=score, f1=score)


def _means(questions: Sequence[Judged], prefix: str) -> dict[str, Any]:
    if not questions:
        return {}
    exact, f1 = sum(question.exact for question in questions), sum(question.f1 for question in questions)
    total = len(questions)
    return {f"{prefix}exact": 100.0 * exact / total, f"{prefix}f1": 100.0 * f1 / total, f"{prefix}total": total}


def _by_id(predictions: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    by_id: dict[str, dict[str, Any]] = {}
    for given in predictions:
        if by_id.setdefault(given["id"], given) != given:
            raise DataError(
                f"predictions: the id {given['id']!r} stands there twice with different predictions.",
                "one prediction for each question.",
                "Choose the best answer over all windows of a long text before scoring.",
            )
    return by_id


def _kind(read: Callable[[Any], Any], form: str) -> Kind:
    return Kind("dict", f"a dict {form}", read, lambda value: f"Give dicts of this form: {form}")


def _prediction(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not isinstance(value.get("prediction_text"), str):
        raise TypeError
    return {"id": _id(value), "prediction_text": value["prediction_text"]}


def _prediction_v2(value: Any) -> dict[str, Any]:
    read = _prediction(value)
    if not isinstance(value.get("no_answer_probability"), int | float):
        raise TypeError
    return read | {"no_answer_probability": float(value["no_answer_probability"])}


def _reference(value: Any) -> dict[str, Any]:
    """Keep the texts; the places of the answers play no part in the scores."""
    if not isinstance(value, dict):
        raise TypeError
    answers = value.get("answers")
    # A list of answers, each with a text, or a dict with a list of texts.
    texts = answers.get("text") if isinstance(answers, dict) else [answer["text"] for answer in answers or ()]
    if answers is None or not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise TypeError
    return {"id": _id(value), "answers": texts}


def _id(value: dict[str, Any]) -> str:
    if not isinstance(value.get("id"), str):
        raise TypeError
    return str(value["id"])
