"""Baselines beside the model: what knows no text, and TF-IDF with a linear model.

Layer 4; scikit-learn and scipy inside functions. A reader sees from them what the Transformer adds.

    a class a row   majority     tfidf_logistic      several labels   frequencies  tfidf_logistic
    numbers         mean         tfidf_ridge
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol, Self

import numpy as np
import numpy.typing as npt

from headstart.tasks import Task

__all__ = ["Baseline", "fit_baselines", "majority_baseline"]

MAX_FEATURES: Final = 50_000
MAX_TRAIN_ROWS: Final = 100_000
MAX_LABEL_ENTRIES: Final = 3_000_000
"""Rows times labels that the linear models of several labels learn from at most."""

Texts = Sequence[str]
Floats = npt.NDArray[np.float64]


class Baseline(Protocol):
    """Something that predicts as a task's model does."""

    def predict(self, texts: Texts, pairs: Texts | None) -> Floats:
        """Predict N texts, or pairs of texts; shape (N, K)."""
        ...


def fit_baselines(
    task: Task,
    texts: Texts,
    pairs: Texts | None,
    targets: npt.NDArray[Any],
    weights: npt.NDArray[Any] | None = None,
    *,
    seed: int = 0,
) -> dict[str, Baseline]:
    """Fit the baselines that a task is compared with.

    Args:
        task: what is learned.
        texts: of the training rows.
        pairs: second texts, or None.
        targets: as the task gives them, shape (N,) or (N, K).
        weights: what each row counts, shape (N,).
        seed: of what is drawn: past 100,000 rows the linear models learn from that many, with many labels from fewer.

    Returns:
        Name to baseline; the first knows no text.
    """
    known = np.flatnonzero(task.has_target(targets))
    num_outputs = len(task.label_names)
    most = MAX_TRAIN_ROWS
    if task.score_kind == "classes":
        most = min(most, max(1_000, MAX_LABEL_ENTRIES // num_outputs))
    rows = _draw(known, most, seed)
    some = [texts[row] for row in rows.tolist()]
    other = [pairs[row] for row in rows.tolist()] if pairs is not None else None
    counts = weights[rows] if weights is not None else None
    if task.score_kind == "number":
        mean = np.nanmean(targets[known].astype(np.float64), axis=0)
        return {"mean": _Constant(mean), "tfidf_ridge": _TfidfRidge(mean).fit(some, other, targets[rows], counts)}
    if task.score_kind == "classes":
        is_known = targets >= 0
        shares = ((targets == 1).sum(axis=0) / np.maximum(1, is_known.sum(axis=0))).astype(np.float64)
        labels = _TfidfLabels(shares, seed).fit(some, other, targets[rows], counts)
        return {"frequencies": _Constant(shares), "tfidf_logistic": labels}
    classes = task.strata(targets)
    shares = majority_baseline(classes, num_outputs, 1)[0]
    fitted = _TfidfLogistic(num_outputs, seed).fit(some, other, classes[rows], counts)
    return {"majority": _Constant(shares), "tfidf_logistic": fitted}


class _Constant:
    """The same prediction for every row."""

    def __init__(self, values: Floats) -> None:
        self._values = values

    def predict(self, texts: Texts, pairs: Texts | None) -> Floats:
        return np.tile(self._values, (len(texts), 1))


def majority_baseline(train_labels: npt.NDArray[np.integer], num_labels: int, num_rows: int) -> Floats:
    """Predict the frequencies of the training classes for every row.

    The most frequent class is so the prediction, and the log loss is that of knowing the frequencies alone.

    Args:
        train_labels: class indices, shape (N,); negative ones have no label.
        num_labels: classes K.
        num_rows: rows to predict.

    Returns:
        Probabilities of shape (num_rows, K).

    Example:
        >>> majority_baseline(np.array([1, 1, 0, 1]), 2, 1)
        array([[0.25, 0.75]])
    """
    counts = np.bincount(train_labels[train_labels >= 0], minlength=num_labels)
    return np.tile(counts / max(1, counts.sum()), (num_rows, 1))


class _Words:
    """TF-IDF of words and word pairs.

    A pair of texts shares one vocabulary; its features are the difference and the product of both texts' weights, so
    that overlap counts.
    """

    def __init__(self, texts: Texts, pairs: Texts | None) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        self._vectorizer: Any = TfidfVectorizer(
            ngram_range=(1, 2),
            max_features=MAX_FEATURES,
            sublinear_tf=True,
            token_pattern=r"(?u)\b\w+\b",
            dtype=np.float32,
        )
        try:
            self._vectorizer.fit([*texts, *(pairs or [])])
        except ValueError:  # no word in any text
            self._vectorizer = None

    def __bool__(self) -> bool:
        return self._vectorizer is not None

    def features(self, texts: Texts, pairs: Texts | None) -> Any:
        from scipy.sparse import hstack

        first = self._vectorizer.transform(texts)
        if pairs is None:
            return first
        second = self._vectorizer.transform(pairs)
        return hstack([abs(first - second), first.multiply(second)]).tocsr()


class _TfidfLogistic:
    """TF-IDF with logistic regression, for one class a row."""

    def __init__(self, num_labels: int, seed: int) -> None:
        self._num_labels = num_labels
        self._seed = seed
        self._model: Any = None
        self._fallback: Floats | None = None

    def fit(
        self,
        texts: Texts,
        pairs: Texts | None,
        labels: npt.NDArray[np.integer],
        weights: npt.NDArray[Any] | None = None,
    ) -> Self:
        """Learn from labelled texts; where they hold no word or one class, predict the class frequencies."""
        from sklearn.linear_model import LogisticRegression

        self._words = _Words(texts, pairs)
        if not self._words or len(np.unique(labels)) < 2:
            self._fallback = majority_baseline(labels, self._num_labels, 1)
            return self
        self._model = LogisticRegression(C=10.0, max_iter=300, tol=1e-3, random_state=self._seed)
        with _without_convergence_warnings():
            self._model.fit(self._words.features(texts, pairs), labels, sample_weight=weights)
        return self

    def predict(self, texts: Texts, pairs: Texts | None) -> Floats:
        """Predict probabilities of shape (N, K); classes that were not in training get 0."""
        if self._fallback is not None:
            return np.repeat(self._fallback, len(texts), axis=0)
        probabilities = np.zeros((len(texts), self._num_labels))
        if len(texts):
            probabilities[:, self._model.classes_] = self._model.predict_proba(self._words.features(texts, pairs))
        return probabilities


class _TfidfLabels:
    """TF-IDF with a logistic regression for each label; one that all rows have, or none, keeps its frequency."""

    def __init__(self, shares: Floats, seed: int) -> None:
        self._shares = shares
        self._seed = seed
        self._models: dict[int, Any] = {}

    def fit(
        self,
        texts: Texts,
        pairs: Texts | None,
        labels: npt.NDArray[np.integer],
        weights: npt.NDArray[Any] | None,
    ) -> Self:
        from sklearn.linear_model import LogisticRegression

        self._words = _Words(texts, pairs)
        if not self._words:
            return self
        features = self._words.features(texts, pairs)
        for label in range(labels.shape[1]):
            rows = np.flatnonzero(labels[:, label] >= 0)
            has = labels[rows, label]
            if len(np.unique(has)) == 2:
                model = LogisticRegression(C=10.0, solver="liblinear", random_state=self._seed)
                with _without_convergence_warnings():
                    model.fit(features[rows], has, sample_weight=weights[rows] if weights is not None else None)
                self._models[label] = model
        return self

    def predict(self, texts: Texts, pairs: Texts | None) -> Floats:
        probabilities = np.tile(self._shares, (len(texts), 1))
        if len(texts) and self._models:
            features = self._words.features(texts, pairs)
            for label, model in self._models.items():
                probabilities[:, label] = model.predict_proba(features)[:, 1]
        return probabilities


class _TfidfRidge:
    """TF-IDF with ridge regression of each number."""

    def __init__(self, mean: Floats) -> None:
        self._mean = mean
        self._models: dict[int, Any] = {}

    def fit(
        self, texts: Texts, pairs: Texts | None, numbers: npt.NDArray[np.floating], weights: npt.NDArray[Any] | None
    ) -> Self:
        from sklearn.linear_model import Ridge

        self._words = _Words(texts, pairs)
        if not self._words:
            return self
        features = self._words.features(texts, pairs)
        for column in range(numbers.shape[1]):
            rows = np.flatnonzero(~np.isnan(numbers[:, column]))
            model = Ridge(alpha=1.0, solver="sparse_cg", tol=1e-4)
            counts = weights[rows] if weights is not None else None
            self._models[column] = model.fit(features[rows], numbers[rows, column].astype(np.float64), counts)
        return self

    def predict(self, texts: Texts, pairs: Texts | None) -> Floats:
        numbers = np.tile(self._mean, (len(texts), 1))
        if len(texts) and self._models:
            features = self._words.features(texts, pairs)
            for column, model in self._models.items():
                numbers[:, column] = model.predict(features)
        return numbers


def _draw(rows: npt.NDArray[np.int64], most: int, seed: int) -> npt.NDArray[np.int64]:
    if len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))


def _without_convergence_warnings() -> Any:
    """Quiet the solver: a baseline that stops at its last iteration is one, and is scored like any other."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning

    context = warnings.catch_warnings(action="ignore", category=ConvergenceWarning)
    return context
