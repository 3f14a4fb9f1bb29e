"""The batch plan: which rows make up which batch of which step, known before any data is read.

Holds pure functions of (lengths, settings, seed, epoch) and `BatchPlan`, which adds the counting of
steps. Imports numpy and `errors` only.

    lengths (N,) -> shuffled rows -> windows, sorted by length -> batches, shuffled -> updates

A row counts as the unit that the task deals; its length is its number of token ids. Nothing draws
from a global stream, so resuming is a seek: the plan of any epoch, and the place of any step,
follow from the arguments alone.
"""

from __future__ import annotations

import hashlib
import math
import numbers
from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from operator import itemgetter
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from headstart.errors import DataError, RecipeError, format_rows, suggest

__all__ = [
    "BatchPlan",
    "Order",
    "Rows",
    "group_updates",
    "padding_fraction",
    "plan_batches",
    "prediction_batches",
]

Order = Literal["length", "random", "sequential"]
Rows = npt.NDArray[np.int64]
"""Row numbers of one batch, shape (B,)."""

WINDOW_BATCHES = 10
"""Batches sorted together. Padding on MRPC: 26 % in random batches of 8, 5 % in windows of 10. In windows of 50 it is
1.3 %, but batches of rows of nearly one length cost accuracy (docs/log.md, 2026-11-22)."""

_STREAM = 0xBA7C4
"""Sets the random stream of the plan apart from others that are keyed by (seed, epoch) too."""

_ROUNDING_STEPS = 1e-6
"""A part of an epoch is a float: 0.1 of 10 steps is one step, also where the product is
1.0000000000000009."""


def plan_batches(
    lengths: npt.NDArray[np.integer],
    *,
    batch_size: int | None = None,
    tokens_per_batch: int | None = None,
    order: Order = "length",
    window: int = WINDOW_BATCHES,
    seed: int,
    epoch: int,
) -> list[Rows]:
    """Plan the batches of one epoch; each row occurs exactly once.

    Rows of one length padded together cost nothing, but sorting everything would deal the same
    batches each epoch. So rows are shuffled, cut into windows, sorted by length inside a window,
    cut into batches, and the batches are shuffled. A batch that was left over short stays last.
    Deterministic in the arguments.

    Args:
        lengths: number of tokens of each row, shape (N,); 0 counts as 1.
        batch_size: rows of a batch at most.
        tokens_per_batch: tokens of a padded batch at most (rows x longest row). Give one of the
            two; with both, both hold.
        order: "length" as above; "random" shuffles without sorting; "sequential" keeps the order of
            the rows.
        window: batches that are sorted together with order "length".
        seed: run seed, at least 0.
        epoch: zero-based pass over the rows; each has its own order.

    Returns:
        Row numbers of each batch, int64, in the order of training.

    Raises:
        RecipeError: neither size is given, a number is out of range, the order is unknown, or a row
            alone is longer than `tokens_per_batch` (the message names the rows).

    Example:
        >>> batches = plan_batches(np.array([3, 3, 8]), tokens_per_batch=8, seed=0, epoch=0)
        >>> sorted(sorted(batch.tolist()) for batch in batches)
        [[0, 1], [2]]

    Source: the windows follow LengthGroupedSampler of transformers (trainer_pt_utils.py, 5.23); the
        budget of padded
    tokens follows `max_tokens` of fairseq (data_utils.batch_by_size).
    """
    _check_settings(lengths, batch_size, tokens_per_batch, order, window)
    padded = np.maximum(lengths, 1).astype(np.int64)
    num_rows = len(padded)
    if num_rows == 0:
        return []
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch, _STREAM])))
    rows = np.arange(num_rows, dtype=np.int64) if order == "sequential" else rng.permutation(num_rows).astype(np.int64)
    if order == "length":
        rows = _sort_windows(rows, padded, window * _typical_rows(padded, batch_size, tokens_per_batch))
    batches = _cut(rows, padded, batch_size, tokens_per_batch)
    if order == "length":
        # A short batch in the middle would change the rows of the updates around it.
        num_moved = len(batches) - int(tokens_per_batch is not None or len(batches[-1]) != batch_size)
        batches = [batches[index] for index in rng.permutation(num_moved)] + batches[num_moved:]
    return batches


def group_updates(batches: Sequence[Rows], accumulation: int) -> list[list[Rows]]:
    """Group consecutive batches into updates; the last update may have fewer.

    Args:
        batches: the batches of one epoch.
        accumulation: batches of one update, at least 1.

    Returns:
        The batches of each update. An update never reaches into the next epoch.

    Raises:
        RecipeError: `accumulation` is below 1.

    Example:
        >>> [len(update) for update in group_updates([np.array([row]) for row in range(5)], 2)]
        [2, 2, 1]
    """
    _check_at_least_one("train.accumulation", accumulation)
    return [list(batches[start : start + accumulation]) for start in range(0, len(batches), accumulation)]


def prediction_batches(lengths: npt.NDArray[np.integer], *, batch_size: int) -> list[Rows]:
    """Plan batches for prediction: longest rows first, no randomness.

    Sorting costs no learning here, and with the longest batch first memory runs out at once or
    never.

    Args:
        lengths: number of tokens of each row, shape (N,).
        batch_size: rows of a batch.

    Returns:
        Row numbers of each batch, int64; each row exactly once, rows of one length in row order,
        the last may be short.

    Raises:
        RecipeError: `batch_size` is below 1.

    Example:
        >>> [batch.tolist() for batch in prediction_batches(np.array([2, 9, 5]), batch_size=2)]
        [[1, 2], [0]]
    """
    _check_at_least_one("evaluate.batch_size", batch_size)
    lengths = np.asarray(lengths)
    rows = np.argsort(-lengths.astype(np.int64), kind="stable").astype(np.int64)
    return [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]


def padding_fraction(lengths: npt.NDArray[np.integer], batches: Sequence[Rows]) -> float:
    """Compute the share of padding among all positions of the padded batches.

    Args:
        lengths: number of tokens of each row, shape (N,).
        batches: row numbers of each batch.

    Returns:
        Padding positions / all positions, 0..1; 0.0 without any position.

    Example:
        >>> padding_fraction(np.array([2, 4]), [np.array([0, 1])])
        0.25
    """
    batches = [batch for batch in batches if len(batch)]
    if not batches:
        return 0.0
    dealt = np.asarray(lengths)[np.concatenate(batches)].astype(np.int64)
    sizes = np.array([len(batch) for batch in batches], dtype=np.int64)
    longest = np.maximum.reduceat(dealt, np.cumsum(sizes) - sizes)
    num_positions = int((sizes * longest).sum())
    return 1.0 - int(dealt.sum()) / num_positions if num_positions else 0.0


class BatchPlan:
    """Know the rows of every step of a training, and the place of any step.

    A step is named by the number of updates made before it, so `locate(state.step)` is the next one
    to make. All answers are functions of the arguments; what is kept inside only saves time. With a
    token budget the steps before an epoch can only be counted by planning each epoch before it; a
    checkpoint keeps that count, and `remember` takes it back.

    Args:
        lengths: number of tokens of each row, shape (N,), at least one row.
        batch_size: rows of a batch at most.
        tokens_per_batch: tokens of a padded batch at most.
        order: "length", "random" or "sequential", see `plan_batches`.
        accumulation: batches of one update.
        seed: run seed.
        window: batches that are sorted together with order "length".

    Raises:
        DataError: there is no row, or the lengths are no numbers.
        RecipeError: the seed is negative; or as `plan_batches` and `group_updates`.

    Example:
        >>> plan = BatchPlan(np.array([3, 4, 5, 6, 7]), batch_size=2, accumulation=2, seed=0)
        >>> plan.steps_in_epoch(0), plan.total_steps(1.5), plan.locate(3)
        (2, 3, (1, 1))
        >>> [sum(len(batch) for batch in update) for update in plan.updates(0)]
        [4, 1]
    """

    def __init__(
        self,
        lengths: npt.NDArray[np.integer],
        *,
        batch_size: int | None = None,
        tokens_per_batch: int | None = None,
        order: Order = "length",
        accumulation: int = 1,
        seed: int = 0,
        window: int = WINDOW_BATCHES,
    ) -> None:
        _check_lengths(lengths)
        self.lengths = np.asarray(lengths)
        self.batch_size = batch_size
        self.tokens_per_batch = tokens_per_batch
        self.order: Order = order
        self.accumulation = accumulation
        self.seed = seed
        self.window = window
        if len(self.lengths) == 0:
            raise DataError(
                "There is no row to train on.",
                "At least one row.",
                "Look at the rows that were skipped.",
            )
        if seed < 0:
            raise RecipeError(f"train.seed: {seed}.", "A whole number of at least 0.", "Set train.seed to 0 or more.")
        _check_settings(self.lengths, batch_size, tokens_per_batch, order, window)
        _check_at_least_one("train.accumulation", accumulation)
        self._kept: tuple[int, list[list[Rows]]] | None = None
        self._num_steps: dict[int, int] = {}  # of each epoch, as far as counted
        self._first_steps = [(0, 0)]  # (epoch, steps before it), as far as known, in order

    @cached_property
    def fingerprint(self) -> str:
        """A short text that is equal where all batches of all epochs are: 16 hexadecimal digits."""
        settings = [self.batch_size, self.tokens_per_batch, self.order, self.accumulation, self.seed, self.window]
        lengths = np.ascontiguousarray(self.lengths, dtype=np.int64)
        return hashlib.sha256(repr(settings).encode() + lengths.tobytes()).hexdigest()[:16]

    def with_accumulation(self, accumulation: int) -> BatchPlan:
        """Give the plan of the same batches with another number of them in an update."""
        return BatchPlan(
            self.lengths,
            batch_size=self.batch_size,
            tokens_per_batch=self.tokens_per_batch,
            order=self.order,
            accumulation=accumulation,
            seed=self.seed,
            window=self.window,
        )

    def updates(self, epoch: int) -> list[list[Rows]]:
        """Plan the updates of an epoch; the plan of the epoch asked for last is kept.

        Args:
            epoch: zero-based pass over the rows.

        Returns:
            For each step of the epoch its batches, each the row numbers of one forward pass.
        """
        if self._kept is None or self._kept[0] != epoch:
            batches = plan_batches(
                self.lengths,
                batch_size=self.batch_size,
                tokens_per_batch=self.tokens_per_batch,
                order=self.order,
                window=self.window,
                seed=self.seed,
                epoch=epoch,
            )
            self._kept = (epoch, group_updates(batches, self.accumulation))
        return self._kept[1]

    def steps_in_epoch(self, epoch: int) -> int:
        """Count the steps of an epoch; with a token budget they differ from epoch to epoch.

        Args:
            epoch: zero-based pass over the rows.

        Returns:
            Number of updates, at least 1.
        """
        if self._fixed_steps is not None:
            return self._fixed_steps
        if epoch not in self._num_steps:
            self._num_steps[epoch] = len(self.updates(epoch))
        return self._num_steps[epoch]

    def remember(self, epoch: int, first_step: int) -> None:
        """Take back how many steps come before an epoch, so that `locate` counts from there.

        This makes resuming a seek with a token budget too: without it, every epoch before the place
        is planned to count its steps. It is not checked against such a count.

        Args:
            epoch: zero-based pass over the rows.
            first_step: updates made before it, as `locate` gave it: step - index.

        Raises:
            ValueError: it cannot be, by what is known without planning an epoch.

        Example:
            >>> plan = BatchPlan(np.array([3, 4, 5, 6, 7]), tokens_per_batch=7, seed=0)
            >>> plan.remember(epoch=300_000, first_step=1_000_000)
            >>> plan.locate(1_000_002)
            (300000, 2)
        """
        place = bisect_right(self._first_steps, epoch, key=itemgetter(0))
        is_possible = epoch >= 0 and (self._fixed_steps is None or first_step == epoch * self._fixed_steps)
        for known_epoch, known_step in self._first_steps[max(place - 1, 0) : place + 1]:
            epochs, steps = epoch - known_epoch, first_step - known_step
            is_possible &= steps / epochs >= 1 if epochs else steps == 0  # no epoch is without a step
        if not is_possible:
            raise ValueError(f"epoch {epoch} cannot begin at step {first_step}")
        if self._first_steps[place - 1][0] != epoch:
            self._first_steps.insert(place, (epoch, first_step))

    def locate(self, step: int) -> tuple[int, int]:
        """Find the place of a step.

        Args:
            step: updates made before it, at least 0.

        Returns:
            The zero-based epoch, and the zero-based index into `updates(epoch)`.

        Raises:
            ValueError: `step` is negative.
        """
        if step < 0:
            raise ValueError(f"step is {step}; it counts the updates made and is at least 0")
        if self._fixed_steps is not None:
            return divmod(step, self._fixed_steps)
        epoch, first_step = self._first_steps[bisect_right(self._first_steps, step, key=itemgetter(1)) - 1]
        while first_step < step and step >= first_step + self.steps_in_epoch(epoch):
            epoch, first_step = self._pass_epoch(epoch, first_step)
        return epoch, step - first_step

    def num_tokens(self, rows: Rows) -> int:
        """Count the tokens of rows, padding apart."""
        return int(self.lengths[rows].sum())

    def total_steps(self, epochs: float) -> int:
        """Count the steps of a training.

        Args:
            epochs: passes over the rows. Of a last part of an epoch the steps are rounded up.

        Returns:
            The sum of the steps of the whole epochs, and ceil(part x steps of the epoch after
            them).

        Raises:
            RecipeError: `epochs` is negative or not finite.
        """
        if not (math.isfinite(epochs) and epochs >= 0):
            raise RecipeError(f"train.epochs: {epochs}.", "A number above 0.", "Set train.epochs, for example 3.")
        num_whole = int(epochs)
        part = epochs - num_whole
        if self._fixed_steps is not None:
            steps = num_whole * self._fixed_steps
        else:
            epoch, steps = self._first_steps[bisect_right(self._first_steps, num_whole, key=itemgetter(0)) - 1]
            while epoch < num_whole:
                epoch, steps = self._pass_epoch(epoch, steps)
        if part > 0:
            steps += math.ceil(part * self.steps_in_epoch(num_whole) - _ROUNDING_STEPS)
        return max(steps, int(epochs > 0))

    @cached_property
    def _fixed_steps(self) -> int | None:
        """Steps of an epoch where all epochs have as many, known without planning one."""
        if self.tokens_per_batch is not None or self.batch_size is None:
            return len(self.updates(0)) if self.order == "sequential" else None
        num_batches = -(-len(self.lengths) // self.batch_size)
        return -(-num_batches // self.accumulation)

    def _pass_epoch(self, epoch: int, first_step: int) -> tuple[int, int]:
        """Give the next epoch and its first step, and keep them."""
        following = epoch + 1, first_step + self.steps_in_epoch(epoch)
        place = bisect_right(self._first_steps, epoch, key=itemgetter(0))
        if self._first_steps[place : place + 1] != [following]:
            self._first_steps.insert(place, following)
        return following


def _check_lengths(lengths: object) -> None:
    """Refuse what is no list of numbers before numpy looks into it, which may take each row of a data set."""
    is_list = isinstance(lengths, Sequence) and isinstance(next(iter(lengths), 0), numbers.Real)
    if not is_list and not hasattr(lengths, "__array__"):  # arrays, tensors, series
        raise DataError(
            f"The lengths are of type {type(lengths).__name__}, not numbers.",
            "the number of tokens of each row.",
            "Write PlannedBatches(rows.lengths, ...), or [len(row) for row in ids].",
        )


def _check_settings(
    lengths: npt.NDArray[np.integer],
    batch_size: int | None,
    tokens_per_batch: int | None,
    order: str,
    window: int,
) -> None:
    if batch_size is None and tokens_per_batch is None:
        raise RecipeError(
            "Neither train.batch_size nor train.tokens_per_batch is set.",
            "One of them, to say how large a batch is.",
            "Set train.batch_size, for example 32.",
        )
    if order not in get_args(Order):
        raise RecipeError(
            f'train.order: "{order}".',
            "One of the orders.",
            suggest(str(order), get_args(Order)),
        )
    _check_at_least_one("window", window)
    if batch_size is not None:
        _check_at_least_one("train.batch_size", batch_size)
    if tokens_per_batch is None:
        return
    _check_at_least_one("train.tokens_per_batch", tokens_per_batch)
    too_long = np.flatnonzero(np.asarray(lengths) > tokens_per_batch)
    if len(too_long):
        row, longest = int(np.argmax(lengths)), int(np.max(lengths))
        raise RecipeError(
            f"train.tokens_per_batch: {tokens_per_batch}, but row {row} has {longest} tokens "
            f"(rows longer than the budget: {format_rows(too_long.tolist())}).",
            "A budget that holds the longest row.",
            f"Set train.tokens_per_batch to {longest} or more, or data.max_length to {tokens_per_batch} or less.",
        )


def _check_at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise RecipeError(f"{name}: {value}.", "A whole number of at least 1.", f"Set {name} to 1 or more.")


def _typical_rows(lengths: Rows, batch_size: int | None, tokens_per_batch: int | None) -> int:
    """Rows of a usual batch: exact for a batch size, by the mean length for a budget."""
    sizes = [] if batch_size is None else [batch_size]
    if tokens_per_batch is not None:
        sizes.append(max(1, int(tokens_per_batch / float(lengths.mean()))))
    return min(sizes)


def _sort_windows(rows: Rows, lengths: Rows, window_rows: int) -> Rows:
    """Sort each window by length, one upwards, the next downwards.

    So a batch cut across the border of two windows holds rows of like length.
    """
    window_index = np.arange(len(rows)) // window_rows
    signed = np.where(window_index % 2 == 0, lengths[rows], -lengths[rows])
    return rows[np.lexsort((signed, window_index))]


def _cut(rows: Rows, lengths: Rows, batch_size: int | None, tokens_per_batch: int | None) -> list[Rows]:
    """Cut rows, in their order, into the largest batches that the settings allow."""
    if tokens_per_batch is None:
        size = batch_size or len(rows)
        return [rows[start : start + size] for start in range(0, len(rows), size)]
    batches = []
    start = 0
    while start < len(rows):
        # No batch can hold more rows than fit at the length of its first one.
        most = tokens_per_batch // int(lengths[rows[start]])
        candidates = rows[start : start + (most if batch_size is None else min(most, batch_size))]
        longest = np.maximum.accumulate(lengths[candidates])
        fits = longest * np.arange(1, len(candidates) + 1) <= tokens_per_batch
        size = int(np.count_nonzero(fits))  # the product never falls, so those that fit come first
        batches.append(candidates[:size])
        start += size
    return batches
