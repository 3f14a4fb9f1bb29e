"""The cuts of rows: shares, groups and times hold, and every row is somewhere."""

from __future__ import annotations

import datetime
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.data.row_facts import read_groups, read_times, read_weights
from headstart.data.row_splits import cut_by_group, cut_by_time, make_folds
from headstart.errors import ColumnError, DataError

LABELS = st.lists(st.integers(0, 3), min_size=8, max_size=60)


def table(**columns: list[Any]) -> datasets.Dataset:
    return datasets.Dataset.from_dict(columns)


@settings(max_examples=40, deadline=None)
@given(LABELS, st.integers(2, 6), st.floats(0.05, 0.9), st.integers(0, 5))
def test_no_group_is_on_both_sides(labels: list[int], num_groups: int, fraction: float, seed: int) -> None:
    groups = np.arange(len(labels)) % num_groups
    train, validation = cut_by_group(np.array(labels), groups, fraction, seed)
    assert sorted([*train, *validation]) == list(range(len(labels)))
    assert len(train) and len(validation)
    assert not set(groups[train]) & set(groups[validation])


def test_groups_are_cut_near_the_fraction_with_the_shares_of_classes() -> None:
    rng = np.random.default_rng(0)
    labels, groups = rng.integers(0, 2, 2000), np.repeat(np.arange(100), 20)
    train, validation = cut_by_group(labels, groups, 0.2, seed=0)
    assert 0.17 < len(validation) / 2000 < 0.23
    assert abs(labels[train].mean() - labels[validation].mean()) < 0.05
    assert cut_by_group(labels, groups, 0.2, seed=1)[1].tolist() != validation.tolist()


def test_one_group_cannot_be_cut() -> None:
    with pytest.raises(DataError, match="one group"):
        cut_by_group(np.zeros(4), np.zeros(4, dtype=int), 0.5, seed=0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=2, max_size=40), st.floats(0.05, 0.95))
def test_validation_rows_are_later_than_all_of_train(times: list[int], fraction: float) -> None:
    values = np.array(times)
    if len(set(times)) < 2:
        with pytest.raises(DataError, match="one time"):
            cut_by_time(values, fraction)
        return
    train, validation = cut_by_time(values, fraction)
    assert sorted([*train, *validation]) == list(range(len(times)))
    assert values[train].max() < values[validation].min()


def test_the_latest_share_is_cut() -> None:
    train, validation = cut_by_time(np.arange(100)[::-1], 0.1)
    assert validation.tolist() == list(range(10)) and len(train) == 90


@settings(max_examples=40, deadline=None)
@given(LABELS, st.integers(2, 5), st.integers(0, 3))
def test_folds_validate_each_row_once(labels: list[int], num_folds: int, seed: int) -> None:
    strata = np.array(labels)
    folds = make_folds(strata, num_folds, seed)
    assert sorted(row for _, validation in folds for row in validation) == list(range(len(labels)))
    for train, validation in folds:
        assert sorted([*train, *validation]) == list(range(len(labels)))
        counts = np.bincount(strata[validation], minlength=4)
        assert (np.abs(counts - np.bincount(strata, minlength=4) / num_folds) <= 1).all()
    sizes = [len(validation) for _, validation in folds]
    assert max(sizes) - min(sizes) <= 1


def test_folds_of_groups_and_of_times() -> None:
    groups = np.repeat(np.arange(12), 5)
    for train, validation in make_folds(np.zeros(60), 4, 0, groups=groups):
        assert not set(groups[train]) & set(groups[validation])
    times = np.random.default_rng(0).permutation(60)
    folds = make_folds(np.zeros(60), 4, 0, times=times)
    assert [len(validation) for _, validation in folds] == [12, 12, 12, 12]
    for (train, validation), (later, _) in zip(folds, [*folds[1:], folds[-1]], strict=True):
        assert times[train].max() < times[validation].min()
        assert set(train) <= set(later)


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"strata": np.zeros(3)}, "4 folds cannot be made of 3 rows"),
        ({"strata": np.zeros(9), "groups": np.arange(9) % 2}, "of 2 groups"),
        ({"strata": np.zeros(9), "times": np.arange(9) % 4}, "of 3 different times"),
    ],
)
def test_too_few_for_the_folds(given: dict[str, Any], part: str) -> None:
    with pytest.raises(DataError, match=part):
        make_folds(num_folds=4, seed=0, **given)


def test_groups_with_fewer_rows_of_a_class_than_folds() -> None:
    folds = make_folds(np.arange(10), 5, 0, groups=np.arange(10))
    assert all(len(validation) for _, validation in folds)


def test_weights_are_read_and_refused() -> None:
    assert read_weights(table(w=[1, 0, 2]), "w").tolist() == [1, 0, 2]
    for values, part in (([1.0, -1.0], "Rows|rows 1"), ([1.0, None], "rows 1"), ([0.0, 0.0], "All rows")):
        with pytest.raises(DataError, match=part):
            read_weights(table(w=values), "w")
    with pytest.raises(ColumnError, match="holds text"):
        read_weights(table(w=["a"]), "w")
    with pytest.raises(ColumnError, match="Did you mean"):
        read_weights(table(weight=[1]), "wieght")


def test_a_row_without_a_group_is_one_of_its_own() -> None:
    groups = read_groups(table(g=["a", None, "a", None]), "g")
    assert groups[0] == groups[2] and len(set(groups)) == 3
    assert len(set(read_groups(table(g=[1, 1, 2]), "g"))) == 2


@pytest.mark.parametrize(
    "values",
    [
        [3, 1, 2],
        [3.5, 1.5, 2.5],
        ["2024-03-01", "2023-01-05", "2024-02-28"],
        ["2024-03-01T12:00:00Z", "2024-03-01T11:00:00Z", "2024-03-01T12:30:00+01:00"],
        [datetime.date(2024, 3, 1), datetime.date(2023, 1, 1), datetime.date(2023, 6, 1)],
        [datetime.datetime(2024, 3, 1), datetime.datetime(2023, 1, 1), datetime.datetime(2023, 6, 1)],
    ],
)
def test_times_of_every_kind_can_be_ordered(values: list[Any]) -> None:
    assert np.argsort(read_times(table(when=values), "when")).tolist() == [1, 2, 0]


def test_what_is_no_time_is_named() -> None:
    with pytest.raises(DataError, match=r"rows 1.*no times"):
        read_times(table(when=["2024-01-01", "soon"]), "when")
    with pytest.raises(DataError, match=r"rows 1, .*have no time"):
        read_times(table(when=[1, None]), "when")
    with pytest.raises(ColumnError, match="list"):
        read_times(table(when=[[1]]), "when")
