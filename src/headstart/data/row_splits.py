"""The cut of a validation split out of the training rows, and of folds.

Holds pure functions of labels, groups, times and seed. Imports numpy; scikit-learn inside functions. What is cut is
cut by one of three rules:

    strata  each class has the same share on both sides        groups  no group is on both sides
    times   what is validated comes after what is learned from
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from headstart.errors import DataError, RecipeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Cut", "cut_by_group", "cut_by_time", "cut_validation", "make_folds"]

Cut = tuple["NDArray[np.int64]", "NDArray[np.int64]"]
"""Positions of the rows to learn from, and of those to validate with; both ascending."""

MAX_FOLDS_OF_A_CUT = 20


def cut_validation(labels: NDArray[Any], fraction: float, seed: int) -> Cut:
    """Cut a validation split out of the training rows, with the same share of each class.

    The whole is rounded first, then each class by the largest remainder. At least one row of each
    class stays in train, so a class with one row is never cut; at least one row is cut where any
    class has two.

    Args:
        labels: the label of each row, shape (N,), of any comparable kind.
        fraction: the share to cut, above 0 and below 1.
        seed: another seed cuts other rows.

    Returns:
        The positions of the rows that stay and of those that are cut, both int64 and ascending.

    Raises:
        RecipeError: the fraction is not between 0 and 1.

    Example:
        >>> train, validation = cut_validation(np.array([0, 0, 0, 0, 1, 1, 1, 1]), 0.25, seed=0)
        >>> len(train), len(validation)
        (6, 2)

    Source: the allocation of Hamilton's method of largest remainders.
    """
    _check_fraction(fraction)
    _, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    quotas = _allocate(counts, fraction)
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(codes))
    by_class = order[np.argsort(codes[order], kind="stable")]
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)
    position_in_class = np.arange(len(codes)) - np.repeat(starts, counts)
    is_cut = np.zeros(len(codes), dtype=bool)
    is_cut[by_class] = position_in_class < np.repeat(quotas, counts)
    return np.flatnonzero(~is_cut), np.flatnonzero(is_cut)


def _allocate(counts: NDArray[np.int64], fraction: float) -> NDArray[np.int64]:
    """Share the rows to cut among the classes; shape (K,), each at most its count less one."""
    limits = counts - 1
    wanted = min(max(1, round(float(counts.sum()) * fraction)), int(limits.sum()))
    exact = counts * fraction
    quotas: NDArray[np.int64] = np.minimum(np.floor(exact).astype(np.int64), limits)
    # Largest remainder first; ties go to the larger class, then to the first.
    order = np.lexsort((np.arange(len(counts)), -counts, -(exact - np.floor(exact))))
    while (rest := wanted - int(quotas.sum())) > 0:
        free = [index for index in order if quotas[index] < limits[index]]
        for index in free[:rest]:
            quotas[index] += 1
    return quotas


def _check_fraction(fraction: float) -> None:
    if not 0 < fraction < 1:
        raise RecipeError(
            f"data.validation_fraction is {fraction}.",
            "A number above 0 and below 1.",
            "Set it to 0.1, for instance.",
        )


def cut_by_group(strata: NDArray[Any], groups: NDArray[np.integer], fraction: float, seed: int) -> Cut:
    """Cut a validation split that shares no group with what stays in train.

    As many whole groups are cut as come nearest to the fraction, with about the same share of each stratum.

    Args:
        strata: class of each row, shape (N,).
        groups: number of the group of each row, shape (N,).
        fraction: the share of the rows to cut, above 0 and below 1.
        seed: another seed cuts other groups.

    Raises:
        DataError: there is only one group.
        RecipeError: the fraction is not between 0 and 1.

    Example:
        >>> train, validation = cut_by_group(np.zeros(6), np.array([0, 0, 1, 1, 2, 2]), 0.34, seed=0)
        >>> len(train), len(validation)
        (4, 2)
    """
    _check_fraction(fraction)
    num_groups = len(np.unique(groups))
    if num_groups < 2:
        raise DataError(
            "data.group: all training rows belong to one group.",
            "two groups or more, so that one can be held out.",
            "Name another column in data.group, or give --validation SOURCE.",
        )
    share = Fraction(fraction).limit_denominator(min(MAX_FOLDS_OF_A_CUT, num_groups))
    num_folds = max(2, share.denominator)
    num_cut = min(max(1, share.numerator), num_folds - 1)
    fold_of_row = _grouped_folds(strata, groups, num_folds, seed)
    is_cut = fold_of_row < num_cut
    return np.flatnonzero(~is_cut), np.flatnonzero(is_cut)


def cut_by_time(times: NDArray[Any], fraction: float) -> Cut:
    """Cut the latest rows; rows of one time stay together.

    Args:
        times: when each row was, in any unit that can be ordered, shape (N,).
        fraction: the share of the rows to cut, above 0 and below 1.

    Raises:
        DataError: all rows are of one time.
        RecipeError: the fraction is not between 0 and 1.

    Example:
        >>> cut_by_time(np.array([3, 1, 2, 4]), 0.25)
        (array([0, 1, 2]), array([3]))
    """
    _check_fraction(fraction)
    ranked = np.sort(times)
    if ranked[0] == ranked[-1]:
        raise DataError(
            "data.time: all training rows are of one time.",
            "rows of several times.",
            "Name another column in data.time, or give --validation SOURCE.",
        )
    wanted = len(times) - max(1, round(len(times) * fraction))
    first = ranked[max(1, wanted)] if max(1, wanted) < len(times) else ranked[-1]
    if first == ranked[0]:  # nothing would be left to learn from
        first = ranked[np.searchsorted(ranked, first, side="right")]
    return np.flatnonzero(times < first), np.flatnonzero(times >= first)


def make_folds(
    strata: NDArray[Any],
    num_folds: int,
    seed: int,
    *,
    groups: NDArray[np.integer] | None = None,
    times: NDArray[Any] | None = None,
) -> list[Cut]:
    """Cut rows into folds for cross validation.

    By strata and by groups each row is validated once. By times there are `num_folds` + 1 blocks of rows, of which each
    but the first is validated by a model that has learned from all before it.

    Args:
        strata: class of each row, shape (N,).
        num_folds: 2 or more.
        seed: another seed makes other folds; of times it makes no difference.
        groups: number of the group of each row, where no group may be on both sides.
        times: when each row was, where what is validated must come later.

    Raises:
        DataError: there are fewer rows, groups or times than folds.

    Example:
        >>> [validation.tolist() for _, validation in make_folds(np.zeros(4), 2, seed=0)]
        [[0, 2], [1, 3]]

    Source: Kohavi 1995, A Study of Cross-Validation and Bootstrap for Accuracy Estimation and Model Selection.
    """
    what, number = ("rows", len(strata)) if groups is None else ("groups", len(np.unique(groups)))
    if times is not None:
        what, number = "different times", len(np.unique(times)) - 1
    if number < num_folds:
        raise DataError(
            f"{num_folds} folds cannot be made of {max(number, 0):,} {what}.",
            "at least as many as folds" + (", and one more." if times is not None else "."),
            "Take fewer folds.",
        )
    if times is not None:
        return _folds_by_time(times, num_folds)
    if groups is not None:
        fold_of_row = _grouped_folds(strata, groups, num_folds, seed)
    else:
        order = np.random.default_rng([seed, 2]).permutation(len(strata))
        by_stratum = order[np.argsort(strata[order], kind="stable")]
        fold_of_row = np.empty(len(strata), dtype=np.int64)
        # Counted through over all strata, so that folds differ by one row at most.
        fold_of_row[by_stratum] = np.arange(len(strata)) % num_folds
    return [(np.flatnonzero(fold_of_row != fold), np.flatnonzero(fold_of_row == fold)) for fold in range(num_folds)]


def _grouped_folds(strata: NDArray[Any], groups: NDArray[np.integer], num_folds: int, seed: int) -> NDArray[np.int64]:
    """Give the fold of each row; rows of a group are in one fold.

    Groups are dealt in the order of their size, each to the fold where the shares of the strata differ least then.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    if np.unique(strata, return_counts=True)[1].max() < num_folds:
        strata = np.zeros(len(strata), dtype=np.int64)  # no class is large enough to be shared out
    splitter = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed % 2**32)
    fold_of_row = np.empty(len(strata), dtype=np.int64)
    with _without_rare_class_warnings():
        for fold, (_, validation) in enumerate(splitter.split(np.zeros(len(strata)), strata, groups)):
            fold_of_row[validation] = fold
    return fold_of_row


def _without_rare_class_warnings() -> Any:
    """Quiet scikit-learn where a class has fewer rows than there are folds: such classes are a finding of their own."""
    import warnings

    context = warnings.catch_warnings(action="ignore", category=UserWarning)
    return context


def _folds_by_time(times: NDArray[Any], num_folds: int) -> list[Cut]:
    _, block_of_row = np.unique(times, return_inverse=True)
    order = np.argsort(block_of_row, kind="stable")
    # Blocks of about equally many rows, moved to where a new time begins.
    ranked = block_of_row[order]
    starts = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1]))
    firsts: list[int] = []
    for block in range(1, num_folds + 1):
        wanted = len(times) * block / (num_folds + 1)
        allowed = starts[
            (starts > (firsts[-1] if firsts else 0)) & (np.arange(len(starts)) <= len(starts) - (num_folds + 1 - block))
        ]
        firsts.append(int(allowed[np.argmin(np.abs(allowed - wanted))]))
    ends = [*firsts[1:], len(times)]
    return [(np.sort(order[:first]), np.sort(order[first:end])) for first, end in zip(firsts, ends, strict=True)]
