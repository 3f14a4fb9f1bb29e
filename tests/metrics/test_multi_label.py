"""Scores of several labels a row: those of scikit-learn, with what is not known left out, and their thresholds."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn.metrics as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.metrics import MULTI_LABEL_SCORES, multi_label_intervals, multi_label_scores, tune_thresholds

Arrays = tuple[np.ndarray, np.ndarray]


def draw(num_rows: int, num_labels: int, seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    labels = (rng.random((num_rows, num_labels)) < 0.3).astype(np.int8)
    return labels, np.clip(rng.random((num_rows, num_labels)) * 0.7 + labels * 0.3, 0.01, 0.99)


def by_scikit_learn(labels: np.ndarray, probabilities: np.ndarray, threshold: float) -> dict[str, float]:
    given = probabilities >= threshold
    options = {"zero_division": 0}
    both = [label for label in range(labels.shape[1]) if 0 < labels[:, label].sum() < len(labels)]
    clipped = probabilities
    return {
        "f1_micro": reference.f1_score(labels, given, average="micro", **options),
        "f1_macro": reference.f1_score(labels, given, average="macro", **options),
        "f1_weighted": reference.f1_score(labels, given, average="weighted", **options),
        "f1_samples": reference.f1_score(labels, given, average="samples", zero_division=1),
        "precision_micro": reference.precision_score(labels, given, average="micro", **options),
        "precision_macro": reference.precision_score(labels, given, average="macro", **options),
        "recall_micro": reference.recall_score(labels, given, average="micro", **options),
        "recall_macro": reference.recall_score(labels, given, average="macro", **options),
        "exact_match": reference.accuracy_score(labels, given),
        "hamming_loss": reference.hamming_loss(labels, given),
        "roc_auc": np.mean([reference.roc_auc_score(labels[:, i], probabilities[:, i]) for i in both]),
        "average_precision": np.mean(
            [reference.average_precision_score(labels[:, i], probabilities[:, i]) for i in both]
        ),
        "log_loss": -np.mean(labels * np.log(clipped) + (1 - labels) * np.log(1 - clipped)),
    }


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.8])
def test_scores_are_those_of_scikit_learn(seed: int, threshold: float) -> None:
    labels, probabilities = draw(40, 5, seed)
    found = multi_label_scores(MULTI_LABEL_SCORES, labels, probabilities, threshold)
    assert found == pytest.approx(by_scikit_learn(labels, probabilities, threshold), abs=1e-9)


def test_what_is_not_known_counts_nothing() -> None:
    labels, probabilities = draw(60, 3, 0)
    masked = labels.copy()
    masked[::3, 1] = -1
    found = multi_label_scores(MULTI_LABEL_SCORES, masked, probabilities)
    known = np.ones(60, dtype=bool)
    known[::3] = False
    own = [
        multi_label_scores(["roc_auc"], labels[rows, i : i + 1], probabilities[rows, i : i + 1])["roc_auc"]
        for i, rows in ((0, slice(None)), (1, known), (2, slice(None)))
    ]
    assert found["roc_auc"] == pytest.approx(np.mean(own))
    is_known = masked >= 0
    wrong = (probabilities >= 0.5)[is_known] != (labels == 1)[is_known]
    assert found["hamming_loss"] == pytest.approx(wrong.mean())


@pytest.mark.parametrize("name", MULTI_LABEL_SCORES)
def test_intervals_hold_the_value_and_shrink_with_rows(name: str) -> None:
    widths = []
    for num_rows in (50, 800):
        labels, probabilities = draw(num_rows, 4, 1)
        found = multi_label_intervals([name], labels, probabilities, num_resamples=200)[name]
        assert found["low"] <= found["value"] <= found["high"]
        widths.append(found["high"] - found["low"])
    assert widths[1] < widths[0] / 2


def test_groups_are_drawn_whole() -> None:
    labels, probabilities = draw(40, 2, 0)
    many = np.repeat(labels, 10, axis=0), np.repeat(probabilities, 10, axis=0)
    by_rows = multi_label_intervals(["f1_micro"], *many)["f1_micro"]
    groups = np.repeat(np.arange(40), 10)
    by_groups = multi_label_intervals(["f1_micro"], *many, groups=groups)["f1_micro"]
    # Ten copies of a row say no more than one.
    alone = multi_label_intervals(["f1_micro"], labels, probabilities)["f1_micro"]
    assert by_groups == pytest.approx(alone)
    assert by_rows["high"] - by_rows["low"] < (by_groups["high"] - by_groups["low"]) / 2


def test_no_rows_and_what_is_not_finite_are_not_defined() -> None:
    labels, probabilities = draw(5, 2, 0)
    probabilities[0, 0] = np.nan
    for one, other in ((labels, probabilities), (labels[:0], probabilities[:0])):
        assert all(np.isnan(value) for value in multi_label_scores(MULTI_LABEL_SCORES, one, other).values())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_no_threshold_has_a_higher_f1_than_the_chosen_one(seed: int) -> None:
    labels, probabilities = draw(60, 2, seed)
    labels[:5] = 1
    probabilities = probabilities.round(1)
    chosen = tune_thresholds(labels, probabilities)
    for label in range(2):
        column = labels[:, label : label + 1], probabilities[:, label : label + 1]
        best = multi_label_scores(["f1_micro"], *column, chosen[label])["f1_micro"]
        for threshold in np.arange(0.05, 1, 0.1):
            assert best >= multi_label_scores(["f1_micro"], *column, threshold)["f1_micro"] - 1e-12


def test_rare_labels_share_a_threshold_and_no_label_keeps_one_half() -> None:
    labels, probabilities = draw(200, 3, 0)
    labels[:, 1] = 0
    labels[:4, 1] = 1  # four rows: too few for its own
    labels[:, 2] = 0
    labels[4:8, 2] = 1
    chosen = tune_thresholds(labels, probabilities)
    assert chosen[1] == chosen[2] != chosen[0]
    labels[8, 1] = 1
    assert tune_thresholds(labels, probabilities)[1] != tune_thresholds(labels, probabilities)[2]
    assert tune_thresholds(np.zeros((4, 2), dtype=np.int8), probabilities[:4, :2]).tolist() == [0.5, 0.5]
