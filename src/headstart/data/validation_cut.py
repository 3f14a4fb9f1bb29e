"""The cut of a validation split out of the training rows.

Holds one pure function of labels, fraction and seed. Imports numpy only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from headstart.errors import RecipeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["cut_validation"]


def cut_validation(labels: NDArray[Any], fraction: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
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
    if not 0 < fraction < 1:
        raise RecipeError(
            f"data.validation_fraction is {fraction}.",
            "A number above 0 and below 1.",
            "Set it to 0.1, for instance.",
        )
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
