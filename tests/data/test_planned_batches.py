"""The batch plan as a batch_sampler: every row once, from any step on, for any number of processes."""

from __future__ import annotations

import pickle
from collections import Counter
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from headstart.data.batches import BatchPlan, plan_batches
from headstart.data.planned_batches import PlannedBatches
from headstart.errors import DataError, RecipeError

lengths = st.lists(st.integers(1, 9), min_size=1, max_size=40).map(np.array)
processes = st.integers(1, 5)


def test_batches_are_those_of_the_plan_when_iterated_epoch_after_epoch() -> None:
    rows = np.arange(1, 24)
    batches = PlannedBatches(rows, batch_size=4, seed=7)
    for epoch in range(3):
        expected = [batch.tolist() for batch in plan_batches(rows, batch_size=4, seed=7, epoch=epoch)]
        assert (batches.epoch, batches.step) == (epoch, epoch * 6)
        assert list(batches) == expected


@given(lengths, processes, st.integers(1, 3), st.integers(1, 7), st.booleans(), st.booleans())
def test_every_row_counts_once_an_epoch_over_all_processes(
    rows: np.ndarray, count: int, accumulation: int, batch_size: int, for_each: bool, budget: bool
) -> None:
    counted: Counter[int] = Counter()
    shares: Counter[int] = Counter()
    numbers = set()
    for rank in range(count):
        batches = PlannedBatches(
            rows,
            batch_size=batch_size,
            tokens_per_batch=9 if budget else None,
            accumulation=accumulation,
            seed=1,
        )
        batches.deal(rank, count, for_each=for_each)
        dealt = list(batches.dealt())
        in_update: Counter[int] = Counter()
        numbers.add(len(dealt))
        assert len(dealt) == len(batches)
        assert [batch.rows.tolist() for batch in dealt] == list(batches)
        for batch in dealt:
            assert 1 <= len(batch.rows) <= batch_size
            assert not budget or len(batch.rows) * rows[batch.rows].max() <= 9
            in_update[batch.step] += 1
            counted.update(batch.rows[: batch.num_counted].tolist())
            shares[batch.step] += batch.num_counted
            assert batch.update_rows <= batch_size * accumulation * (count if for_each else 1)
        assert max(in_update.values()) <= batches.batches_per_update
        ends = [batch.step for batch in dealt if batch.ends_update]
        assert ends == sorted({batch.step for batch in dealt})
        assert [batch.ends_epoch for batch in dealt] == [False] * (len(dealt) - 1) + [True]
    assert numbers == {len(dealt)}  # nobody waits for a batch that another does not have
    assert counted == Counter(range(len(rows)))
    assert all(shares[batch.step] == batch.update_rows for batch in dealt)


@given(lengths, processes, st.integers(1, 7))
def test_gathered_rows_are_the_plan_filled_up_at_the_end_when_evened_out(
    rows: np.ndarray, count: int, batch_size: int
) -> None:
    dealt = []
    for rank in range(count):
        batches = PlannedBatches(rows, batch_size=batch_size, order="sequential")
        batches.deal(rank, count, evens_out=True)
        dealt.append(list(batches.dealt()))
        assert len(dealt[-1]) == len(batches)
    gathered = []
    for pieces in zip(*dealt, strict=True):
        assert len({len(piece.rows) for piece in pieces}) == 1
        gathered += np.concatenate([piece.rows for piece in pieces])[: pieces[0].update_rows].tolist()
        assert sum(piece.num_counted for piece in pieces) == pieces[0].update_rows
    assert gathered == list(range(len(rows)))


@given(lengths, st.integers(0, 60), st.integers(1, 3), st.booleans())
def test_seek_gives_the_batches_that_were_left(rows: np.ndarray, step: int, accumulation: int, budget: bool) -> None:
    size = {"tokens_per_batch": 18} if budget else {"batch_size": 4}
    plan = BatchPlan(rows, accumulation=accumulation, seed=3, **size)  # type: ignore[arg-type]
    epoch, index = plan.locate(step)
    batches = PlannedBatches(rows, accumulation=accumulation, seed=3, **size)  # type: ignore[arg-type]
    batches.seek(step)
    assert (batches.epoch, batches.step) == (epoch, step)
    expected = [batch.tolist() for batch in chain.from_iterable(plan.updates(epoch)[index:])]
    assert list(batches) == expected
    assert batches.epoch == epoch + 1


def test_set_epoch_keeps_the_place_inside_the_epoch_it_is_in() -> None:
    batches = PlannedBatches(np.ones(10), batch_size=2, order="sequential")
    batches.seek(7)
    batches.set_epoch(1)
    assert list(batches) == [[4, 5], [6, 7], [8, 9]]
    batches.set_epoch(0)
    assert len(list(batches)) == 5
    with pytest.raises(ValueError, match="epoch is -1"):
        batches.set_epoch(-1)
    with pytest.raises(ValueError, match="step is -1"):
        batches.seek(-1)


def test_an_iteration_that_is_left_begins_again() -> None:
    batches = PlannedBatches(np.ones(10), batch_size=2, seed=1)
    first = next(iter(batches))
    assert batches.epoch == 0
    assert next(iter(batches)) == first


def test_the_next_epoch_comes_where_nobody_asks_for_one_batch_more() -> None:
    batches = PlannedBatches(np.ones(6), batch_size=2, seed=1)
    orders = []
    for _ in range(2):
        iterator = iter(DataLoader(range(6), batch_sampler=batches))  # type: ignore[arg-type, var-annotated]
        orders.append([next(iterator).tolist() for _ in range(3)])
    assert orders[0] != orders[1]
    assert batches.epoch == 2
    assert batches.sampler is batches  # where Lightning looks for set_epoch


def test_plan_is_kept_when_pickled() -> None:
    batches = PlannedBatches(np.arange(1, 20), batch_size=4, accumulation=2, seed=5)
    batches.seek(4)
    batches.deal(1, 2)
    again = pickle.loads(pickle.dumps(batches))
    assert list(again) == list(batches)


def test_each_argument_counts() -> None:
    rows = np.tile([2, 9], 20)

    def dealt(**given: object) -> list[list[int]]:
        return list(PlannedBatches(rows, **{"batch_size": 4, "seed": 1, **given}))  # type: ignore[arg-type]

    usual = dealt()
    for other in ({"batch_size": 5}, {"seed": 2}, {"order": "random"}, {"order": "sequential"}, {"window": 1}):
        assert dealt(**other) != usual
    assert dealt(batch_size=None, tokens_per_batch=18) != usual
    assert PlannedBatches(rows, batch_size=4, accumulation=5).total_steps(3) == 6


def test_a_plan_of_one_epoch_is_a_batch_sampler() -> None:
    batches = plan_batches(np.ones(5), batch_size=2, order="sequential", seed=0, epoch=0)
    loader = DataLoader(range(5), batch_sampler=batches)  # type: ignore[arg-type, var-annotated]
    assert [batch.tolist() for batch in loader] == [[0, 1], [2, 3], [4]]


def test_errors() -> None:
    with pytest.raises(DataError, match="no row"):
        PlannedBatches(np.ones(0), batch_size=2)
    with pytest.raises(RecipeError, match="Neither"):
        PlannedBatches(np.ones(3))
    with pytest.raises(RecipeError, match=r"train\.seed: -1"):
        PlannedBatches(np.ones(3), batch_size=2, seed=-1)
    for rows in ([{"input_ids": [1]}], ["a"], {"input_ids": [1]}):
        with pytest.raises(DataError, match="number of tokens of each row"):
            PlannedBatches(rows, batch_size=2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rank is 2 of 2"):
        PlannedBatches(np.ones(3), batch_size=2).deal(2, 2)
    for wrong in ({"accumulation": 2, "batch_size": 2}, {"tokens_per_batch": 4}):
        with pytest.raises(RecipeError, match="accumulation or a budget of tokens"):
            PlannedBatches(np.ones(3), **wrong).deal(0, 2, evens_out=True)  # type: ignore[arg-type]
