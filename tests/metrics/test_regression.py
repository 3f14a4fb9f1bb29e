"""Scores of numbers: those of scikit-learn and scipy, also of rows that are drawn again."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.metrics import REGRESSION_SCORES, regression_intervals, regression_scores
from headstart.metrics.regression import _Targets

LIBRARIES = {
    "rmse": reference.root_mean_squared_error,
    "mae": reference.mean_absolute_error,
    "mse": reference.mean_squared_error,
    "r2": reference.r2_score,
    "pearson": lambda targets, predictions: scipy.stats.pearsonr(targets, predictions).statistic,
    "spearman": lambda targets, predictions: scipy.stats.spearmanr(targets, predictions).statistic,
}


def by_the_libraries(targets: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    return {name: compute(targets, predictions) for name, compute in LIBRARIES.items()}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 80), st.sampled_from([0.0, 1e3, -1e6]), st.booleans())
def test_scores_are_those_of_scikit_learn_and_scipy(seed: int, num_rows: int, shift: float, has_ties: bool) -> None:
    rng = np.random.default_rng(seed)
    targets = rng.normal(size=num_rows) * 3
    predictions = targets + rng.normal(size=num_rows)
    if has_ties:
        targets, predictions = targets.round(), predictions.round()
        targets[:2] = [0, 9]
        predictions[:2] = [0, 9]
    targets, predictions = targets + shift, predictions + shift
    found = regression_scores(REGRESSION_SCORES, targets[:, None], predictions[:, None])
    assert found == pytest.approx(by_the_libraries(targets, predictions), rel=1e-6, abs=1e-9)


def test_weighting_rows_is_drawing_them() -> None:
    rng = np.random.default_rng(0)
    targets, predictions = rng.normal(size=(30, 1)).round(1), rng.normal(size=(30, 1)).round(1)
    counts = rng.integers(0, 4, 30)
    weighted = _Targets(REGRESSION_SCORES, targets, predictions).scores(counts[None, :].astype(float))[0]
    drawn = np.repeat(np.arange(30), counts)
    assert weighted == pytest.approx(by_the_libraries(targets[drawn, 0], predictions[drawn, 0]))


def test_several_targets_are_averaged_and_missing_ones_left_out() -> None:
    rng = np.random.default_rng(0)
    targets, predictions = rng.normal(size=(40, 2)), rng.normal(size=(40, 2))
    targets[::4, 1] = np.nan
    known = ~np.isnan(targets[:, 1])
    first, second = (
        by_the_libraries(targets[:, 0], predictions[:, 0]),
        by_the_libraries(targets[known, 1], predictions[known, 1]),
    )
    expected = {name: (first[name] + second[name]) / 2 for name in REGRESSION_SCORES}
    assert regression_scores(REGRESSION_SCORES, targets, predictions) == pytest.approx(expected)


def test_what_is_not_defined_is_nan() -> None:
    constant, other = np.ones((5, 1)), np.arange(5.0)[:, None]
    assert all(
        np.isnan(regression_scores(["r2", "pearson", "spearman"], constant, other)[name]) for name in ("r2", "pearson")
    )
    found = regression_scores(REGRESSION_SCORES, other, constant)
    assert np.isnan(found["pearson"]) and np.isnan(found["spearman"]) and found["mae"] == 1.4
    assert all(np.isnan(value) for value in regression_scores(REGRESSION_SCORES, other[:0], other[:0]).values())
    assert np.isnan(regression_scores(["mae"], other, other * np.nan)["mae"])


@pytest.mark.parametrize("name", ["rmse", "spearman"])
def test_intervals_are_those_of_scipys_bootstrap(name: str) -> None:
    rng = np.random.default_rng(3)
    targets = rng.normal(size=120)
    predictions = targets + rng.normal(size=120)
    found = regression_intervals([name], targets[:, None], predictions[:, None], num_resamples=1000)[name]
    drawn = scipy.stats.bootstrap(
        (targets, predictions),
        LIBRARIES[name],
        paired=True,
        vectorized=False,
        n_resamples=1000,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    width = drawn.high - drawn.low
    assert found["low"] == pytest.approx(drawn.low, abs=0.15 * width)
    assert found["high"] == pytest.approx(drawn.high, abs=0.15 * width)


def test_confidence_seed_and_groups_count() -> None:
    rng = np.random.default_rng(3)
    targets = rng.normal(size=(60, 1))
    predictions = targets + rng.normal(size=(60, 1))

    def width(**options: object) -> float:
        found = regression_intervals(["mae"], targets, predictions, **options)["mae"]  # type: ignore[arg-type]
        return found["high"] - found["low"]

    assert width(confidence=0.5) < width() != width(seed=1)
    # Groups of rows whose errors are alike.
    order = np.argsort(np.abs(targets - predictions)[:, 0])
    groups = np.empty(60, dtype=int)
    groups[order] = np.arange(60) // 10
    assert width(groups=groups) > width()
