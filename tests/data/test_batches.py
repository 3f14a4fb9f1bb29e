"""The batch plan: every row once, within its sizes, the same for the same arguments."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.data.batches import (
    BatchPlan,
    group_updates,
    padding_fraction,
    plan_batches,
    prediction_batches,
)
from headstart.errors import DataError, RecipeError

BUDGET = 64
lengths_lists = st.lists(st.integers(0, BUDGET), min_size=1, max_size=120)
sizes = st.one_of(
    st.fixed_dictionaries({"batch_size": st.integers(1, 50)}),
    st.fixed_dictionaries({"tokens_per_batch": st.integers(BUDGET, 400)}),
    st.fixed_dictionaries({"batch_size": st.integers(1, 50), "tokens_per_batch": st.integers(BUDGET, 400)}),
)
orders = st.sampled_from(["length", "random", "sequential"])


def skewed_lengths(num_rows: int = 2000) -> np.ndarray:
    return np.random.default_rng(7).lognormal(3.5, 0.6, num_rows).astype(np.int32) + 2


def rows_of(batches: list[np.ndarray]) -> list[int]:
    return [int(row) for batch in batches for row in batch]


@given(lengths_lists, sizes, orders, st.integers(1, 9), st.integers(0, 2**62), st.integers(0, 5))
def test_every_row_occurs_once_and_sizes_hold_for_any_setting(
    lengths: list[int], size: dict[str, Any], order: Any, window: int, seed: int, epoch: int
) -> None:
    array = np.array(lengths, dtype=np.int32)
    batches = plan_batches(array, **size, order=order, window=window, seed=seed, epoch=epoch)
    assert sorted(rows_of(batches)) == list(range(len(lengths)))
    for batch in batches:
        assert batch.dtype == np.int64
        assert 1 <= len(batch) <= size.get("batch_size", len(lengths))
        longest = max(int(array[batch].max()), 1)
        assert len(batch) * longest <= size.get("tokens_per_batch", math.inf)
    again = plan_batches(array, **size, order=order, window=window, seed=seed, epoch=epoch)
    assert all(np.array_equal(one, two) for one, two in zip(batches, again, strict=True))


@given(lengths_lists, st.integers(1, 50), orders, st.integers(0, 3))
def test_only_the_last_batch_is_short_when_cut_by_rows(
    lengths: list[int], batch_size: int, order: Any, epoch: int
) -> None:
    batches = plan_batches(np.array(lengths), batch_size=batch_size, order=order, window=2, seed=3, epoch=epoch)
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert len(batches) == -(-len(lengths) // batch_size)


@pytest.mark.parametrize("order", ["length", "random"])
@pytest.mark.parametrize("size", [{"batch_size": 8}, {"tokens_per_batch": 400}])
def test_order_differs_when_epoch_or_seed_differs(order: Any, size: dict[str, Any]) -> None:
    lengths = skewed_lengths(200)
    plans = [
        rows_of(plan_batches(lengths, **size, order=order, seed=seed, epoch=epoch))
        for seed, epoch in [(0, 0), (0, 1), (1, 0), (1, 1)]
    ]
    assert len({tuple(plan) for plan in plans}) == 4


def test_rows_keep_their_order_when_sequential() -> None:
    lengths = skewed_lengths(50)
    for size in ({"batch_size": 8}, {"tokens_per_batch": 400}):
        for epoch in (0, 1):
            batches = plan_batches(lengths, **size, order="sequential", seed=0, epoch=epoch)
            assert rows_of(batches) == list(range(50))


def test_order_is_the_same_in_another_process() -> None:
    """Resuming is a seek, so a plan must not depend on the process or on a global stream."""
    code = (
        "import numpy as np; from headstart.data.batches import plan_batches; np.random.seed(5);"
        "plan = plan_batches(np.arange(20) % 7, batch_size=6, seed=4, epoch=2);"
        "print([batch.tolist() for batch in plan])"
    )
    here = [b.tolist() for b in plan_batches(np.arange(20) % 7, batch_size=6, seed=4, epoch=2)]
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == str(here)


def test_plan_is_the_one_of_earlier_releases() -> None:
    """A run of last month resumes with its own rows: another plan needs another name of order."""
    batches = plan_batches(np.arange(10), batch_size=4, window=1, seed=0, epoch=0)
    assert [batch.tolist() for batch in batches] == [[7, 5, 3, 1], [2, 6, 8, 9], [0, 4]]


def test_one_row_gives_one_batch() -> None:
    sizes_tried: list[dict[str, Any]] = [{"batch_size": 8}, {"tokens_per_batch": 5}]
    for size in sizes_tried:
        batches = plan_batches(np.array([5]), **size, seed=0, epoch=0)
        assert [batch.tolist() for batch in batches] == [[0]]


def test_no_rows_give_no_batch() -> None:
    empty = np.array([], dtype=np.int32)
    assert plan_batches(empty, batch_size=8, seed=0, epoch=0) == []
    assert plan_batches(empty, tokens_per_batch=8, seed=0, epoch=0) == []
    assert prediction_batches(empty, batch_size=8) == []
    assert padding_fraction(empty, []) == 0.0


@pytest.mark.parametrize("size", [{"batch_size": 8}, {"tokens_per_batch": 512}])
def test_padding_is_lower_when_sorted_in_windows(size: dict[str, Any]) -> None:
    lengths = skewed_lengths()
    padding = {
        order: padding_fraction(lengths, plan_batches(lengths, **size, order=order, seed=0, epoch=0))
        for order in ("length", "random")
    }
    assert padding["length"] < 0.16 < 0.2 < padding["random"]


def test_batches_are_mixed_by_length_after_sorting() -> None:
    """Long and short batches must come in random order, or the loss curve is a saw."""
    lengths = skewed_lengths()
    batches = plan_batches(lengths, batch_size=8, seed=0, epoch=0)
    means = np.array([lengths[batch].mean() for batch in batches])
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.2


def test_budget_is_used_well_when_cut_by_tokens() -> None:
    lengths = skewed_lengths()
    batches = plan_batches(lengths, tokens_per_batch=512, seed=0, epoch=0)
    assert lengths.sum() / (512 * len(batches)) > 0.84


def test_row_and_both_numbers_are_named_when_a_row_exceeds_the_budget() -> None:
    with pytest.raises(RecipeError) as error:
        plan_batches(np.array([3, 90, 70]), tokens_per_batch=64, seed=0, epoch=0)
    message = str(error.value)
    assert "row 1 has 90 tokens" in message
    assert "64" in message
    assert "1, 2" in message
    plan_batches(np.array([64, 3]), tokens_per_batch=64, seed=0, epoch=0)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({}, "train.batch_size"),
        ({"batch_size": 0}, "train.batch_size"),
        ({"tokens_per_batch": 0}, "train.tokens_per_batch"),
        ({"batch_size": 2, "window": 0}, "window"),
        ({"batch_size": 2, "order": "lenght"}, 'Did you mean "length"'),
    ],
)
def test_setting_is_named_when_out_of_range(settings: dict[str, Any], word: str) -> None:
    with pytest.raises(RecipeError, match=word):
        plan_batches(np.array([3, 4]), **settings, seed=0, epoch=0)


def test_updates_are_consecutive_batches_and_the_last_may_be_short() -> None:
    batches = [np.array([row]) for row in range(7)]
    updates = group_updates(batches, 3)
    assert [[int(batch[0]) for batch in update] for update in updates] == [
        [0, 1, 2],
        [3, 4, 5],
        [6],
    ]
    assert group_updates([], 3) == []
    with pytest.raises(RecipeError, match=r"train\.accumulation"):
        group_updates(batches, 0)


@given(st.lists(st.integers(0, 600), max_size=80), st.integers(1, 20))
def test_prediction_batches_hold_each_row_once_longest_first(lengths: list[int], batch_size: int) -> None:
    batches = prediction_batches(np.array(lengths, dtype=np.int32), batch_size=batch_size)
    rows = rows_of(batches)
    assert rows == sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    assert all(len(batch) == batch_size for batch in batches[:-1])


@given(lengths_lists, st.integers(1, 20))
def test_padding_fraction_counts_the_positions_of_padding(lengths: list[int], batch_size: int) -> None:
    batches = prediction_batches(np.array(lengths), batch_size=batch_size)
    positions = sum(len(batch) * max(lengths[row] for row in batch) for batch in batches)
    expected = 1 - sum(lengths) / positions if positions else 0.0
    assert padding_fraction(np.array(lengths), batches) == pytest.approx(expected)


@given(lengths_lists, sizes, orders, st.integers(1, 5), st.integers(0, 40))
def test_locate_agrees_with_walking_through_the_updates(
    lengths: list[int], size: dict[str, Any], order: Any, accumulation: int, step: int
) -> None:
    settings: dict[str, Any] = {**size, "order": order, "accumulation": accumulation, "seed": 1}
    walked = BatchPlan(np.array(lengths), **settings)
    epoch, before = 0, 0
    while before + len(walked.updates(epoch)) <= step:
        before += len(walked.updates(epoch))
        assert walked.steps_in_epoch(epoch) == len(walked.updates(epoch))
        epoch += 1
    fresh = BatchPlan(np.array(lengths), **settings)
    assert fresh.locate(step) == (epoch, step - before)
    assert fresh.total_steps(epoch) == before
    rows = [row for update in fresh.updates(epoch) for row in rows_of(update)]
    assert sorted(rows) == list(range(len(lengths)))


def test_last_group_is_short_and_counted_when_batches_do_not_divide() -> None:
    plan = BatchPlan(np.arange(1, 12), batch_size=2, accumulation=4, seed=0)  # 6 batches: 4 + 2
    assert [[len(batch) for batch in update] for update in plan.updates(0)] == [
        [2, 2, 2, 2],
        [2, 1],
    ]
    assert plan.steps_in_epoch(0) == 2
    assert [plan.locate(step) for step in range(5)] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]


@pytest.mark.parametrize(("epochs", "steps"), [(0, 0), (0.001, 1), (0.1, 1), (0.11, 2), (0.5, 5), (1, 10), (1.1, 11)])
def test_total_steps_round_a_part_of_an_epoch_up(epochs: float, steps: int) -> None:
    assert BatchPlan(np.ones(40, int), batch_size=4, seed=0).total_steps(epochs) == steps


def test_total_steps_are_summed_when_epochs_differ_by_token_budget() -> None:
    plan = BatchPlan(skewed_lengths(300), tokens_per_batch=300, order="random", seed=0)
    counts = [len(plan.updates(epoch)) for epoch in range(6)]
    assert len(set(counts)) > 1
    assert plan.total_steps(6) == sum(counts)
    assert plan.total_steps(0.5) == math.ceil(counts[0] / 2)
    assert plan.total_steps(1.5) == counts[0] + math.ceil(counts[1] / 2)
    assert plan.locate(sum(counts[:3])) == (3, 0)
    assert plan.locate(sum(counts[:3]) - 1) == (2, counts[2] - 1)


def test_no_epoch_is_planned_when_steps_are_counted_by_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = BatchPlan(np.ones(40, int), batch_size=4, seed=0)
    monkeypatch.setattr("headstart.data.batches.plan_batches", lambda *_, **__: pytest.fail())
    assert plan.total_steps(1e6) == 10_000_000
    assert plan.locate(9_999_999) == (999_999, 9)


def test_updates_are_planned_once_when_one_epoch_is_asked_for_again() -> None:
    for order in ("length", "sequential"):
        plan = BatchPlan(skewed_lengths(50), tokens_per_batch=300, order=order, seed=0)
        plan.total_steps(4)
        first = plan.updates(1)
        plan.locate(3)
        plan.steps_in_epoch(1)
        assert plan.updates(1) is first


@given(lengths_lists, sizes, orders, st.integers(1, 3), st.integers(1, 6), st.lists(st.integers(0, 60), max_size=8))
def test_a_remembered_epoch_changes_no_answer(
    lengths: list[int], size: dict[str, Any], order: Any, accumulation: int, epoch: int, steps: list[int]
) -> None:
    """Asked in any order, before the remembered epoch and after it."""
    settings: dict[str, Any] = {**size, "order": order, "accumulation": accumulation, "seed": 1}
    counted, told = (BatchPlan(np.array(lengths), **settings) for _ in range(2))
    told.remember(epoch, counted.total_steps(epoch))
    for step in steps:
        assert told.locate(step) == counted.locate(step)
        again = BatchPlan(np.array(lengths), **settings)
        place, index = told.locate(step)
        again.remember(place, step - index)  # what a checkpoint of this step keeps
        assert [again.locate(step + more) for more in range(3)] == [counted.locate(step + more) for more in range(3)]
    assert [told.total_steps(epochs) for epochs in (9, 0.5, 3)] == [
        counted.total_steps(epochs) for epochs in (9, 0.5, 3)
    ]
    assert [told.steps_in_epoch(place) for place in range(9)] == [counted.steps_in_epoch(place) for place in range(9)]


@pytest.mark.parametrize("order", ["length", "random"])
def test_only_the_remembered_epoch_is_planned_when_a_step_far_away_is_found(
    order: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = []

    def spy(*arguments: Any, epoch: int, **options: Any) -> list[np.ndarray]:
        planned.append(epoch)
        return plan_batches(*arguments, epoch=epoch, **options)

    monkeypatch.setattr("headstart.data.batches.plan_batches", spy)
    plan = BatchPlan(skewed_lengths(50), tokens_per_batch=300, order=order, seed=0)
    plan.remember(epoch=100_000, first_step=1_000_000)
    assert plan.locate(1_000_001) == (100_000, 1)
    plan.steps_in_epoch(100_000)
    plan.updates(100_000)
    assert planned == [100_000]


@pytest.mark.parametrize("size", [{"batch_size": 8}, {"tokens_per_batch": 300}])
@pytest.mark.parametrize(("epoch", "first_step"), [(-1, 0), (0, 3), (3, 2), (3, -4), (2, 10**6), (9, 1)])
def test_an_epoch_cannot_begin_where_no_step_is_left_for_another(
    size: dict[str, Any], epoch: int, first_step: int
) -> None:
    plan = BatchPlan(skewed_lengths(50), **size, order="random", seed=0)
    plan.remember(4, plan.total_steps(4))
    with pytest.raises(ValueError, match="cannot begin at step"):
        plan.remember(epoch, first_step)
    plan.remember(3, plan.total_steps(3))
    plan.remember(0, 0)


def test_plan_fails_at_once_when_its_arguments_are_wrong() -> None:
    with pytest.raises(DataError, match="no row"):
        BatchPlan(np.array([], dtype=np.int32), batch_size=4)
    with pytest.raises(RecipeError, match=r"train\.accumulation"):
        BatchPlan(np.array([1]), batch_size=4, accumulation=0)
    with pytest.raises(RecipeError, match="row 0 has 9 tokens"):
        BatchPlan(np.array([9]), tokens_per_batch=8)
    plan = BatchPlan(np.array([1]), batch_size=4)
    for epochs in (-1.0, math.nan, math.inf):
        with pytest.raises(RecipeError, match=r"train\.epochs"):
            plan.total_steps(epochs)
    with pytest.raises(ValueError, match="step is -1"):
        plan.locate(-1)
