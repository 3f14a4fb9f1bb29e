"""From a DataLoader to the rows of each step: the order, the seek, the end of an epoch, streams."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.data_loader import SeedableRandomSampler
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, WeightedRandomSampler

from headstart.drop_in.losses import uses_argument
from headstart.drop_in.orders import FastOrder, SeededRandomSampler
from headstart.drop_in.plans import plan_of
from headstart.drop_in.row_plan import RowPlan
from headstart.drop_in.stream_plan import StreamPlan, num_rows_of, part_of_batch
from headstart.errors import DataError

TOTAL = 1000


def rows_of_steps(plan: Any, steps: range) -> list[list[list[int]]]:
    found = []
    for step in steps:
        epoch, index = plan.locate(step)
        found.append([rows.tolist() for rows in plan.updates(epoch)[index]])
    return found


def row_plan(num_rows: int = 10, batch_size: int = 3, accumulation: int = 2, **options: Any) -> RowPlan:
    data = list(range(num_rows))
    sampler = options.pop("sampler", None) or SeededRandomSampler(data, seed=7)
    loader: Any = DataLoader(data, batch_size, sampler=sampler)  # type: ignore[arg-type]
    given: dict[str, Any] = {"rank": 0, "num_processes": 1, "total_steps": TOTAL, "seed": 7, **options}
    plan = plan_of(loader, accumulation=accumulation, **given)
    assert isinstance(plan, RowPlan)
    return plan


@given(st.integers(1, 30), st.integers(0, 5), st.integers(0, 2**31))
def test_the_shuffled_order_is_that_of_accelerate(num_rows: int, epoch: int, seed: int) -> None:
    ours = SeededRandomSampler(range(num_rows), seed)
    theirs = SeedableRandomSampler(range(num_rows), data_seed=seed)
    ours.set_epoch(epoch)
    theirs.set_epoch(epoch)
    assert list(ours) == list(theirs)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(1, 7), st.booleans())
def test_rows_by_length_come_once_an_epoch(lengths: list[int], batch_size: int, drop_last: bool) -> None:
    order = FastOrder(np.array(lengths), batch_size, drop_last, seed=0)
    batches = list(order)
    rows = [row for batch in batches for row in batch]
    assert len(set(rows)) == len(rows) and len(batches) == len(order)
    assert set(rows) == set(range(len(lengths))) or (drop_last and len(rows) == len(lengths) // batch_size * batch_size)
    order.set_epoch(1)
    assert sorted(row for batch in order for row in batch) == sorted(rows) or drop_last


@given(st.integers(1, 30), st.integers(1, 7), st.booleans(), st.integers(0, 3))
def test_where_padding_is_free_rows_come_as_trainer_has_them(
    num_rows: int, batch_size: int, drop_last: bool, epoch: int
) -> None:
    order = FastOrder(np.full(num_rows, 5), batch_size, drop_last, seed=3)
    order.is_shuffled = True
    rows = SeedableRandomSampler(range(num_rows), data_seed=3)
    for sampler in (order, rows):
        sampler.set_epoch(epoch)
    assert list(order) == list(BatchSampler(rows, batch_size, drop_last)) and len(list(order)) == len(order)


@given(st.integers(1, 23), st.integers(1, 5), st.integers(1, 3), st.integers(0, 25))
def test_seeking_gives_what_counting_gives(num_rows: int, batch_size: int, accumulation: int, step: int) -> None:
    steps = range(step, step + 4)
    counted = rows_of_steps(row_plan(num_rows, batch_size, accumulation), range(step + 4))[step:]
    assert rows_of_steps(row_plan(num_rows, batch_size, accumulation), steps) == counted
    place = row_plan(num_rows, batch_size, accumulation)
    epoch, index = place.locate(step)
    resumed = row_plan(num_rows, batch_size, accumulation)
    resumed.remember(epoch, step - index)
    assert rows_of_steps(resumed, steps) == counted


def test_an_order_that_depends_on_those_before_it_is_drawn_again_from_the_first() -> None:
    """A sampler with a stream of its own, made anew for a resumed training."""

    def plan() -> RowPlan:
        weights = [1.0] * 10
        generator = torch.Generator().manual_seed(3)
        return row_plan(sampler=WeightedRandomSampler(weights, 10, generator=generator))

    counted = rows_of_steps(plan(), range(8))
    assert rows_of_steps(plan(), range(6, 8)) == counted[6:]
    assert counted[:2] != counted[2:4]


def test_an_epoch_that_ends_early_gives_way_to_the_next() -> None:
    whole, cut = row_plan(), row_plan()
    cut.locate(1)
    cut.end_epoch(1)
    assert cut.locate(1) == (1, 0)
    assert rows_of_steps(cut, range(1, 3)) == rows_of_steps(whole, range(2, 4))


def test_behind_the_last_step_no_order_is_drawn() -> None:
    class Counting(SeededRandomSampler):
        drawn = 0

        def __iter__(self) -> Iterator[int]:
            self.drawn += 1
            return super().__iter__()

    sampler = Counting(range(10), 7)
    plan = row_plan(sampler=sampler, total_steps=4)
    rows_of_steps(plan, range(4))
    assert plan.locate(4) == (2, 0) and plan.steps_in_epoch(2) == 2
    assert sampler.drawn == 2


def test_an_epoch_without_a_batch_is_said() -> None:
    data = [1, 2]
    plan = plan_of(
        DataLoader(data, 3, drop_last=True), accumulation=1, rank=0, num_processes=1, total_steps=2, seed=0  # type: ignore[arg-type]
    )  # fmt: skip
    with pytest.raises(DataError, match="not a single batch"):
        plan.locate(0)


class Numbers(IterableDataset[dict[str, Any]]):
    def __init__(self, count: int) -> None:
        self.count = count
        self.num_begun = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.num_begun += 1
        for number in range(self.count):
            yield {"x": float(number), "noise": torch.rand(())}


def stream_plan(dataset: Any, total_steps: int = 10, accumulation: int = 2) -> StreamPlan:
    plan = plan_of(
        DataLoader(dataset, 2), accumulation=accumulation, rank=0, num_processes=1, total_steps=total_steps, seed=5
    )
    assert isinstance(plan, StreamPlan)
    return plan


def values_of_steps(plan: StreamPlan, steps: range) -> list[Any]:
    found = []
    for step in steps:
        epoch, index = plan.locate(step)
        batches = [plan.make_batch(rows) for rows in plan.updates(epoch)[index]]
        found.append((epoch, index, [(batch["x"].tolist(), batch["noise"].tolist()) for batch in batches]))
    return found


def test_a_stream_keeps_its_order_and_begins_again() -> None:
    found = values_of_steps(stream_plan(Numbers(5)), range(4))
    assert [(epoch, index, [x for x, _ in batches]) for epoch, index, batches in found] == [
        (0, 0, [[0.0, 1.0], [2.0, 3.0]]), (0, 1, [[4.0]]), (1, 0, [[0.0, 1.0], [2.0, 3.0]]), (1, 1, [[4.0]]),
    ]  # fmt: skip


def test_a_stream_is_read_again_to_the_same_draws() -> None:
    counted = values_of_steps(stream_plan(Numbers(20)), range(8))
    for step in range(1, 8):
        plan = stream_plan(Numbers(20))
        epoch, index = counted[step][:2]
        plan.remember(epoch, step - index)
        assert values_of_steps(plan, range(step, 8)) == counted[step:], step


def test_a_stream_is_not_read_behind_the_last_step() -> None:
    dataset = Numbers(4)
    plan = stream_plan(dataset, total_steps=1)
    values_of_steps(plan, range(1))
    assert plan.locate(1) == (0, 1) and dataset.num_begun == 1


@pytest.mark.parametrize("dataset", [Numbers(0), iter([{"x": torch.ones(2)}])], ids=["empty", "read once"])
def test_a_stream_that_gives_nothing_is_said(dataset: Any) -> None:
    loader = dataset if isinstance(dataset, Iterator) else DataLoader(dataset, 2)
    plan = plan_of(loader, accumulation=1, rank=0, num_processes=1, total_steps=5, seed=0)
    with pytest.raises(DataError, match="gives no batch"):
        for step in range(3):
            plan.locate(step)


def test_parts_of_a_batch_put_together_are_the_batch() -> None:
    batch = {
        "x": torch.arange(6).view(3, 2),
        "names": ["a", "b", "c"],
        "scale": torch.tensor(2.0),
        "pair": (torch.ones(3),),
    }
    assert num_rows_of(batch) == 3
    first, second = part_of_batch(batch, 0, 2, 3), part_of_batch(batch, 2, 3, 3)
    assert torch.equal(torch.cat([first["x"], second["x"]]), batch["x"])
    assert first["names"] + second["names"] == batch["names"]
    assert first["scale"] == batch["scale"] and len(first["pair"][0]) == 2


def _mean(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> None: ...
def _divides(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
    return outputs / num_items_in_batch


def _hands_on(outputs: Any, **kwargs: Any) -> Any:
    return _divides(outputs, None, **kwargs)


def _takes_all(outputs: Any, **kwargs: Any) -> Any:
    return outputs


class _Callable:
    def __call__(self, outputs: Any, num_items_in_batch: Any = None) -> Any:
        return outputs * num_items_in_batch


@pytest.mark.parametrize(
    ("function", "uses"),
    [(_mean, False), (_divides, True), (_hands_on, True), (_takes_all, False), (_Callable(), True), (max, True)],
)
def test_whether_an_argument_is_used_is_read_from_the_code(function: Any, uses: bool) -> None:
    assert uses_argument(function, "num_items_in_batch") is uses
