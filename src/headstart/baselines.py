"""Baselines beside the model: the majority class, and TF-IDF with logistic regression.

Layer 4; scikit-learn and scipy inside functions. A reader sees from them what the Transformer adds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["TfidfLogistic", "majority_baseline", "tfidf_logistic"]

MAX_FEATURES: Final = 50_000
MAX_TRAIN_ROWS: Final = 100_000


def majority_baseline(train_labels: npt.NDArray[np.integer], num_labels: int, num_rows: int) -> npt.NDArray[np.float64]:
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


class TfidfLogistic:
    """TF-IDF of words and word pairs with logistic regression.

    A pair of texts shares one vocabulary; its features are the difference and the product of both texts' weights, so
    that overlap counts.
    """

    def __init__(self, num_labels: int, seed: int) -> None:
        self._num_labels = num_labels
        self._seed = seed
        self._vectorizer: Any = None
        self._model: Any = None
        self._fallback: npt.NDArray[np.float64] | None = None

    def fit(self, texts: Sequence[str], pairs: Sequence[str] | None, labels: npt.NDArray[np.integer]) -> TfidfLogistic:
        """Learn from labelled texts; where they hold no word or one class, predict the class frequencies."""
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression

        labelled = np.flatnonzero(labels >= 0)
        if len(labelled) > MAX_TRAIN_ROWS:
            labelled = np.sort(np.random.default_rng(self._seed).choice(labelled, MAX_TRAIN_ROWS, replace=False))
        texts = [texts[row] for row in labelled.tolist()]
        pairs = [pairs[row] for row in labelled.tolist()] if pairs is not None else None
        labels = labels[labelled]
        self._vectorizer = TfidfVectorizer(
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
        if self._vectorizer is None or len(np.unique(labels)) < 2:
            self._fallback = majority_baseline(labels, self._num_labels, 1)
            return self
        self._model = LogisticRegression(C=10.0, max_iter=300, tol=1e-3, random_state=self._seed)
        with _without_convergence_warnings():
            self._model.fit(self._features(texts, pairs), labels)
        return self

    def predict(self, texts: Sequence[str], pairs: Sequence[str] | None) -> npt.NDArray[np.float64]:
        """Predict probabilities of shape (N, K); classes that were not in training get 0."""
        if self._fallback is not None:
            return np.repeat(self._fallback, len(texts), axis=0)
        probabilities = np.zeros((len(texts), self._num_labels))
        if len(texts):
            probabilities[:, self._model.classes_] = self._model.predict_proba(self._features(texts, pairs))
        return probabilities

    def _features(self, texts: Sequence[str], pairs: Sequence[str] | None) -> Any:
        from scipy.sparse import hstack

        first = self._vectorizer.transform(texts)
        if pairs is None:
            return first
        second = self._vectorizer.transform(pairs)
        return hstack([abs(first - second), first.multiply(second)]).tocsr()


def tfidf_logistic(
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    labels: npt.NDArray[np.integer],
    num_labels: int,
    *,
    seed: int = 0,
) -> TfidfLogistic:
    """Fit the TF-IDF baseline on the training rows.

    Past 100,000 rows it learns from that many, drawn by the seed.

    Args:
        texts: N texts.
        pairs: N second texts, or None.
        labels: class indices, shape (N,); negative ones are left out.
        num_labels: classes K.
        seed: of what is drawn.
    """
    return TfidfLogistic(num_labels, seed).fit(texts, pairs, labels)


def _without_convergence_warnings() -> Any:
    """Quiet the solver: a baseline that stops at its last iteration is one, and is scored like any other."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning

    context = warnings.catch_warnings(action="ignore", category=ConvergenceWarning)
    return context
