"""Every schedule against the one of transformers or PyTorch that it is said to equal."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau

from headstart.errors import RecipeError
from headstart.optim_numbers import SCHEDULES, ScheduleName
from headstart.recipe_sections import OptimSection
from headstart.training.schedules import PlateauRule, build_schedule, learning_rate_factor, schedule_numbers
from headstart.training.state import LoopSettings, TrainState
from headstart.training.watched_scores import note_scores

Make = Callable[[torch.optim.Optimizer, int, int], LRScheduler]
RATE = 0.3


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=RATE)


def of_transformers(name: str, **numbers: Any) -> Make:
    return lambda own, warmup, total: getattr(transformers, name)(
        own, num_warmup_steps=warmup, num_training_steps=total, **numbers
    )


def inverse_root(own: torch.optim.Optimizer, warmup: int, total: int) -> LRScheduler:
    return transformers.get_inverse_sqrt_schedule(own, warmup)


def one_cycle(own: torch.optim.Optimizer, warmup: int, total: int) -> LRScheduler:
    return OneCycleLR(own, max_lr=RATE, total_steps=total, pct_start=warmup / total, cycle_momentum=False)


CASES: list[tuple[ScheduleName, dict[str, Any], Make]] = [
    ("linear", {}, of_transformers("get_linear_schedule_with_warmup")),
    ("linear", {"end_factor": 0.25}, of_transformers("get_polynomial_decay_schedule_with_warmup", lr_end=RATE / 4)),
    ("cosine", {}, of_transformers("get_cosine_schedule_with_warmup")),
    ("cosine", {"end_factor": 0.1}, of_transformers("get_cosine_with_min_lr_schedule_with_warmup", min_lr_rate=0.1)),
    ("polynomial", {}, of_transformers("get_polynomial_decay_schedule_with_warmup", power=2.0, lr_end=0.0)),
    (
        "polynomial",
        {"power": 0.5, "end_factor": 0.5},
        of_transformers("get_polynomial_decay_schedule_with_warmup", power=0.5, lr_end=RATE / 2),
    ),
    ("inverse_sqrt", {}, inverse_root),
    ("cosine_with_restarts", {}, of_transformers("get_cosine_with_hard_restarts_schedule_with_warmup", num_cycles=2)),
    (
        "cosine_with_restarts",
        {"cycles": 3},
        of_transformers("get_cosine_with_hard_restarts_schedule_with_warmup", num_cycles=3),
    ),
    ("one_cycle", {}, one_cycle),
]


@pytest.mark.parametrize(("schedule", "numbers", "make"), CASES)
@pytest.mark.parametrize(("total", "warmup"), [(10, 3), (7, 2), (40, 12), (5, 4)])
def test_a_schedule_is_that_of_the_library(
    schedule: ScheduleName, numbers: dict[str, Any], make: Make, total: int, warmup: int
) -> None:
    own, other = optimizer(), optimizer()
    built = build_schedule(own, total_steps=total, warmup=warmup, schedule=schedule, **numbers)
    expected = make(other, warmup, total)
    for step in range(total):
        factor = learning_rate_factor(step, total_steps=total, warmup_steps=warmup, schedule=schedule, **numbers)
        assert RATE * factor == pytest.approx(expected.get_last_lr()[0], rel=1e-9, abs=1e-12)
        assert built.get_last_lr() == pytest.approx(expected.get_last_lr(), rel=1e-9, abs=1e-12)
        for one in (own, other):
            one.step()
        built.step()
        if step < total - 1:
            expected.step()


@given(
    schedule=st.sampled_from(sorted(SCHEDULES)),
    total=st.integers(1, 300),
    share=st.floats(0, 1.5),
    power=st.floats(0.1, 5),
    end_factor=st.floats(0, 0.99),
    cycles=st.integers(1, 9),
)
def test_every_schedule_stays_in_bounds(
    schedule: ScheduleName, total: int, share: float, power: float, end_factor: float, cycles: int
) -> None:
    warmup = int(share * total)
    numbers = {"power": power, "end_factor": end_factor, "cycles": cycles}
    factors = [
        learning_rate_factor(step, total_steps=total, warmup_steps=warmup, schedule=schedule, **numbers)  # type: ignore[arg-type]
        for step in range(total)
    ]
    assert all(0.0 <= factor <= 1.0 + 1e-12 for factor in factors)
    rising, rest = factors[:warmup], factors[warmup:]
    assert rising == sorted(rising)
    if rest and schedule != "cosine_with_restarts":
        assert rest == sorted(rest, reverse=True)
    if rest and schedule in ("linear", "cosine", "polynomial"):
        assert rest[0] == pytest.approx(1.0)
        assert min(rest) >= end_factor
    if rest and schedule == "cosine_with_restarts":
        assert sum(later > former for former, later in itertools.pairwise(rest)) <= cycles - 1


def test_one_cycle_rises_over_its_warm_up_and_no_other_begins_with_one() -> None:
    assert OptimSection(schedule="one_cycle").warmup == "30%"
    others = [name for name in SCHEDULES if name not in ("one_cycle", "inverse_sqrt")]
    assert {OptimSection(schedule=name).warmup for name in others} == {0}  # type: ignore[arg-type]
    factors = [learning_rate_factor(s, total_steps=10, warmup_steps=3, schedule="one_cycle") for s in range(10)]
    assert [factors[0], factors[2], factors[-1]] == pytest.approx([1 / 25, 1.0, 1 / 250_000])
    assert learning_rate_factor(0, total_steps=1, warmup_steps=1, schedule="one_cycle") == 1.0
    assert learning_rate_factor(0, total_steps=1, warmup_steps=0, schedule="one_cycle") == pytest.approx(1 / 250_000)


def test_numbers_of_a_section_reach_the_function() -> None:
    section = OptimSection(schedule="polynomial", power=3.0, end_factor=0.2)
    assert schedule_numbers(section) == {"power": 3.0, "end_factor": 0.2}
    assert schedule_numbers(OptimSection(schedule="cosine_with_restarts", cycles=4)) == {"cycles": 4}
    assert schedule_numbers(OptimSection(schedule="plateau")) == {}


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"schedule": "plateau"}, r"ReduceLROnPlateau"),
        ({"schedule": "inverse_sqrt"}, r'warmup="10%"'),
        (
            {"schedule": "cosine", "power": 2.0},
            r"power has no effect with the cosine schedule; it belongs to polynomial",
        ),
        ({"schedule": "one_cycle", "end_factor": 0.1}, r"it belongs to linear, cosine and polynomial"),
        ({"schedule": "polynomail"}, r'Did you mean "polynomial"'),
    ],
)
def test_what_a_schedule_of_an_own_loop_cannot_do_is_said(numbers: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        build_schedule(optimizer(), total_steps=10, **numbers)


# The plateau


@given(
    scores=st.lists(st.one_of(st.floats(0.0, 1.0), st.sampled_from([0.5, 0.50001, math.nan])), min_size=1, max_size=40),
    higher=st.booleans(),
    factor=st.floats(0.3, 0.9),
    patience=st.integers(0, 4),
)
def test_a_plateau_is_that_of_torch(scores: list[float], higher: bool, factor: float, patience: int) -> None:
    other = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e9)  # so that its least step of 1e-8 is never met
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = ReduceLROnPlateau(other, mode="max" if higher else "min", factor=factor, patience=patience)
    settings = LoopSettings(total_steps=9, seed=0, plateau=PlateauRule("score", higher, factor, patience))
    state = TrainState()
    for score in scores:
        expected.step(score)
        note_scores(state, settings, {"score": score})
        assert 1e9 * state.rate_factor == pytest.approx(other.param_groups[0]["lr"], rel=1e-9)
        state = TrainState.from_dict(state.to_dict())  # as a checkpoint keeps it
