"""Scores are scikit-learn's, and intervals are what resampling rows gives."""

import warnings
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap

from headstart.errors import RecipeError
from headstart.metrics import (
    CLASSIFICATION_SCORES,
    compute_scores,
    default_scores,
    glue_scores,
    higher_is_better,
    resolve_scores,
    score_intervals,
)
from headstart.metrics.intervals import Ranking, _count_score

COUNTED = [name for name in CLASSIFICATION_SCORES if name not in ("roc_auc", "average_precision", "log_loss")]


def draw(seed: int, num_rows: int, num_labels: int, decimals: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Draw labels, and probabilities that know something of them; few decimals make ties."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_labels, num_rows)
    logits = rng.normal(size=(num_rows, num_labels)) + np.eye(num_labels)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    rounded = np.round(probabilities, decimals) + 1e-6
    return labels, rounded / rounded.sum(1, keepdims=True)


def expected(name: str, labels: np.ndarray, probabilities: np.ndarray) -> float:
    predicted, num_labels = probabilities.argmax(1), probabilities.shape[1]
    base, _, average = name.partition("_")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's about classes that these rows do not have
        if name == "balanced_accuracy":
            return float(sk.balanced_accuracy_score(labels, predicted))
        if name == "matthews_correlation":
            return float(sk.matthews_corrcoef(labels, predicted))
        if name == "log_loss":
            return float(sk.log_loss(labels, probabilities, labels=range(num_labels)))
        if name in ("roc_auc", "average_precision"):
            score = getattr(sk, f"{name}_score")
            if num_labels == 2:
                return float(score(labels, probabilities[:, 1]))
            return float(np.mean([score(labels == label, probabilities[:, label]) for label in range(num_labels)]))
        if name == "accuracy":
            return float(sk.accuracy_score(labels, predicted))
        return float(getattr(sk, f"{base}_score")(labels, predicted, average=average or "binary", zero_division=0))


def defined(num_labels: int) -> list[str]:
    return [name for name in CLASSIFICATION_SCORES if num_labels == 2 or name not in ("f1", "precision", "recall")]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(2, 5), st.sampled_from([1, 8]))
def test_scores_are_those_of_scikit_learn(seed: int, num_rows: int, num_labels: int, decimals: int) -> None:
    labels, probabilities = draw(seed, num_rows, num_labels, decimals)
    found = compute_scores(defined(num_labels), labels, probabilities)
    has_all = len(np.unique(labels)) == num_labels
    for name, value in found.items():
        if name in ("roc_auc", "average_precision") and (not has_all or num_rows < num_labels + 1):
            continue
        assert value == pytest.approx(expected(name, labels, probabilities), abs=1e-9), name


def test_multiclass_roc_auc_is_one_against_the_rest() -> None:
    labels, probabilities = draw(1, 200, 4)
    found = compute_scores(["roc_auc"], labels, probabilities)["roc_auc"]
    assert found == pytest.approx(sk.roc_auc_score(labels, probabilities, multi_class="ovr", average="macro"))


def test_what_is_not_defined_is_nan_without_a_warning() -> None:
    one_class = np.zeros(4, dtype=int)
    probabilities = np.tile([0.7, 0.3], (4, 1))
    scores = compute_scores(list(CLASSIFICATION_SCORES), one_class, probabilities)
    assert np.isnan(scores["roc_auc"]) and np.isnan(scores["average_precision"])
    assert scores["accuracy"] == 1 and scores["f1"] == 0 and scores["matthews_correlation"] == 0
    for labels, given_ in ((one_class[:0], probabilities[:0]), (one_class, probabilities * np.nan)):
        empty = score_intervals(["accuracy", "roc_auc", "log_loss"], labels, given_)
        assert all(np.isnan(value) for parts in empty.values() for value in parts.values())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 40), st.integers(2, 5))
def test_every_count_score_of_a_resample_is_the_score_of_its_rows(seed: int, num_rows: int, num_labels: int) -> None:
    labels, probabilities = draw(seed, num_rows, num_labels)
    rows = np.random.default_rng(seed).integers(0, num_rows, num_rows)
    confusion = np.zeros((num_labels, num_labels))
    np.add.at(confusion, (labels[rows], probabilities[rows].argmax(1)), 1)
    sums = (np.diag(confusion)[None], confusion.sum(1)[None], confusion.sum(0)[None])
    names = [name for name in COUNTED if name in defined(num_labels)]
    direct = compute_scores(names, labels[rows], probabilities[rows])
    for name in names:
        assert _count_score(name, *sums)[0] == pytest.approx(direct[name], abs=1e-9), name


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 40), st.sampled_from([1, 8]))
def test_a_weighted_ranking_is_the_ranking_of_the_repeated_rows(seed: int, num_rows: int, decimals: int) -> None:
    labels, probabilities = draw(seed, num_rows, 2, decimals)
    rows = np.random.default_rng(seed).integers(0, num_rows, num_rows)
    ranking, weights = Ranking(labels == 1, probabilities[:, 1]), np.bincount(rows, minlength=num_rows)
    direct = compute_scores(["roc_auc", "average_precision"], labels[rows], probabilities[rows])
    for name, value in direct.items():
        found = getattr(ranking, name)(weights)
        assert (found is None) == np.isnan(value)
        assert found is None or found == pytest.approx(value, abs=1e-9), name


@pytest.mark.parametrize("name", ["accuracy", "f1", "matthews_correlation", "roc_auc", "average_precision", "log_loss"])
def test_intervals_are_those_of_scipys_bootstrap(name: str) -> None:
    labels, probabilities = draw(3, 300, 2)

    def statistic(rows: np.ndarray) -> float:
        rows = rows.astype(int)
        return compute_scores([name], labels[rows], probabilities[rows])[name]

    theirs: Any = bootstrap(
        (np.arange(300),),
        statistic,
        vectorized=False,
        method="percentile",
        n_resamples=1000,
        rng=np.random.default_rng(0),
    ).confidence_interval
    ours = score_intervals([name], labels, probabilities, seed=1, num_resamples=4000)[name]
    width = theirs.high - theirs.low
    assert ours["low"] == pytest.approx(theirs.low, abs=0.12 * width)
    assert ours["high"] == pytest.approx(theirs.high, abs=0.12 * width)
    assert ours["low"] < ours["value"] < ours["high"]


def test_an_interval_follows_its_seed_and_its_confidence() -> None:
    labels, probabilities = draw(0, 200, 3)
    first = score_intervals(["accuracy", "log_loss"], labels, probabilities, seed=4)
    assert first == score_intervals(["accuracy", "log_loss"], labels, probabilities, seed=4)
    assert first != score_intervals(["accuracy", "log_loss"], labels, probabilities, seed=5)
    narrow = score_intervals(["accuracy"], labels, probabilities, confidence=0.5)["accuracy"]
    wide = score_intervals(["accuracy"], labels, probabilities, confidence=0.99)["accuracy"]
    assert wide["low"] < narrow["low"] < narrow["high"] < wide["high"]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(2, 5), st.booleans())
def test_scores_are_those_of_scikit_learn_when_one_class_is_all(
    seed: int, num_rows: int, num_labels: int, one_prediction: bool
) -> None:
    _, probabilities = draw(seed, num_rows, num_labels)
    labels = np.full(num_rows, seed % num_labels)
    if one_prediction:
        probabilities = np.tile(probabilities[:1], (num_rows, 1))
    names = [name for name in defined(num_labels) if name not in ("roc_auc", "average_precision")]
    for name, value in compute_scores(names, labels, probabilities).items():
        assert value == pytest.approx(expected(name, labels, probabilities), abs=1e-9), name


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_a_sure_mistake_costs_what_it_costs_in_scikit_learn(kind: Any) -> None:
    labels, probabilities = np.array([0, 0, 1, 1]), np.array([[1, 0], [0, 1], [0.25, 0.75], [1, 0]], dtype=kind)
    found = score_intervals(["log_loss"], labels, probabilities)["log_loss"]
    assert found["value"] == pytest.approx(sk.log_loss(labels, probabilities), rel=1e-6)
    assert np.isfinite(list(found.values())).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(2, 5))
def test_every_count_score_of_the_rows_themselves_is_that_of_scikit_learn(
    seed: int, num_rows: int, num_labels: int
) -> None:
    labels, probabilities = draw(seed, num_rows, num_labels, decimals=1)
    confusion = sk.confusion_matrix(labels, probabilities.argmax(1), labels=range(num_labels)).astype(float)
    sums = (np.diag(confusion)[None], confusion.sum(1)[None], confusion.sum(0)[None])
    for name in COUNTED:
        if name in defined(num_labels):
            assert _count_score(name, *sums)[0] == pytest.approx(expected(name, labels, probabilities), abs=1e-9), name


def test_only_log_loss_is_better_when_lower() -> None:
    assert [name for name in CLASSIFICATION_SCORES if not higher_is_better(name)] == ["log_loss"]


def test_glue_tasks_have_their_own_scores() -> None:
    assert glue_scores("mrpc") == ["accuracy", "f1"] and glue_scores("cola") == ["matthews_correlation"]
    assert resolve_scores(None, 2, "hub:nyu-mll/glue/sst2[:10]") == ["accuracy"]
    assert resolve_scores(["glue/qqp", "log_loss"], 2, None) == ["accuracy", "f1", "log_loss"]
    assert resolve_scores(None, 2, "hub:imdb") == default_scores(2)
    with pytest.raises(RecipeError, match="a score of numbers"):
        resolve_scores(["glue/stsb"], 2, None)


def test_all_faults_of_the_scores_are_in_one_message() -> None:
    with pytest.raises(RecipeError) as caught:
        resolve_scores(["acuracy", "f1", "recall"], 3, None)
    message = str(caught.value)
    assert 'Did you mean "accuracy"?' in message and "f1_macro" in message and "recall_macro" in message
