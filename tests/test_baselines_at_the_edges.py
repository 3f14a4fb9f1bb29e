"""What the baselines do with rows that have no label, more rows than they learn from, and a solver that stops early."""

import numpy as np
import pytest

import headstart.baselines
from small_training import tfidf_logistic

WORDS = ("red", "blue")
TEXTS = [f"{WORDS[index % 2]} thing {index}" for index in range(60)]
LABELS = np.array([0, 1] * 30)


def test_rows_without_a_label_teach_nothing() -> None:
    texts, labels = [*TEXTS, *(["red blue"] * 40)], np.append(LABELS, [-1] * 40)
    with_unlabelled = tfidf_logistic(texts, None, labels, 2).predict(WORDS, None)
    np.testing.assert_array_equal(with_unlabelled, tfidf_logistic(TEXTS, None, LABELS, 2).predict(WORDS, None))


def test_past_the_limit_it_learns_from_as_many_rows_as_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headstart.baselines, "MAX_TRAIN_ROWS", 40)

    def rows_learnt(seed: int) -> set[str]:
        # Each text has a number of its own, so the vocabulary tells which rows were drawn.
        vocabulary = tfidf_logistic(TEXTS, None, LABELS, 2, seed=seed)._words._vectorizer.vocabulary_
        return {word for word in vocabulary if word.isdigit()}

    assert len(rows_learnt(1)) == 40
    assert rows_learnt(1) == rows_learnt(1) != rows_learnt(2)


def test_a_solver_that_does_not_converge_is_no_warning() -> None:
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{word}" for word in rng.integers(0, 3000, 30)) for _ in range(200)]
    from sklearn.linear_model import LogisticRegression

    with pytest.MonkeyPatch.context() as patch:
        fit = LogisticRegression.fit

        def stop_early(self: LogisticRegression, *args: object, **named: object) -> LogisticRegression:
            self.max_iter = 1
            return fit(self, *args, **named)

        patch.setattr(LogisticRegression, "fit", stop_early)
        probabilities = tfidf_logistic(texts, None, rng.integers(0, 3, 200), 3).predict(texts[:5], None)
    np.testing.assert_allclose(probabilities.sum(1), 1)


def test_no_rows_to_predict_give_no_probabilities() -> None:
    assert tfidf_logistic(TEXTS, None, LABELS, 2).predict([], None).shape == (0, 2)
    assert tfidf_logistic(TEXTS, TEXTS, LABELS, 2).predict([], []).shape == (0, 2)
