"""Intervals are those of a plain bootstrap that draws rows and scores them."""

import numpy as np
import pytest

from headstart.metrics import compute_scores, score_intervals


def draw(seed: int, num_rows: int, num_labels: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_labels, num_rows)
    logits = rng.normal(size=(num_rows, num_labels)) + np.eye(num_labels)[labels]
    return labels, np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def test_intervals_of_many_classes_are_those_of_drawing_rows_one_resample_at_a_time() -> None:
    labels, probabilities = draw(5, 200, 4)
    names = ["accuracy", "f1_macro", "roc_auc", "average_precision", "log_loss"]
    rng = np.random.default_rng(9)
    drawn = [rng.integers(0, 200, 200) for _ in range(300)]
    scores = [compute_scores(names, labels[rows], probabilities[rows]) for rows in drawn]
    intervals = score_intervals(names, labels, probabilities, seed=2)
    for name in names:
        low, high = np.quantile([score[name] for score in scores], [0.025, 0.975])
        width = high - low
        # With 300 resamples of a normal score an end has a standard error of 0.04 widths: five of them.
        assert intervals[name]["low"] == pytest.approx(low, abs=0.2 * width), name
        assert intervals[name]["high"] == pytest.approx(high, abs=0.2 * width), name


def test_a_log_loss_that_is_one_number_for_every_row_has_a_point_as_interval() -> None:
    probabilities = np.tile([[0.25, 0.75]], (12, 1))
    found = score_intervals(["log_loss"], np.ones(12, dtype=int), probabilities)["log_loss"]
    assert list(found.values()) == pytest.approx([-np.log(0.75)] * 3)


def test_resamples_of_one_class_are_left_out_of_a_ranking() -> None:
    labels = np.array([0, 0, 0, 0, 0, 1])  # a third of the resamples hold no row of class 1
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4], [0.3, 0.7], [0.4, 0.6]])
    for found in score_intervals(["roc_auc", "average_precision"], labels, probabilities).values():
        assert 0 <= found["low"] <= found["value"] <= found["high"] <= 1


def test_an_interval_does_not_depend_on_the_other_scores_asked_for() -> None:
    labels, probabilities = draw(0, 80, 3)
    together = score_intervals(["f1_macro", "log_loss", "accuracy", "roc_auc"], labels, probabilities, seed=3)
    for name in together:
        assert score_intervals([name], labels, probabilities, seed=3)[name] == together[name]
