"""Rows of an embedding that are updated when they are needed have the bits of those that always were."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from headstart.models.lazy_embedding import LazyEmbedding, lazy_embeddings
from headstart.models.row_gradients import row_gradient, rows_and_values, sum_by_row
from headstart.models.working_copies import WorkingCopies
from headstart.training import missed_updates
from headstart.training.fast_adamw import FastAdamW
from headstart.training.gradients import merge_rows, share_rows
from headstart.training.memory import MemoryWatch
from headstart.training.processes import Processes

NUM_ROWS, WIDTH = 12, 21  # more than one vector, and a part of one


class Words(nn.Module):
    """An embedding and a layer over it."""

    def __init__(self, num_rows: int = NUM_ROWS, padding_idx: int | None = None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.words = nn.Embedding(num_rows, WIDTH, padding_idx=padding_idx)
        self.head = nn.Linear(WIDTH, 3)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.words(ids)).square().sum()  # type: ignore[no-any-return]


def build(*, lazy: bool, model: nn.Module | None = None, **numbers: Any) -> tuple[Any, FastAdamW]:
    model = model or Words()
    embeddings = lazy_embeddings(model, min_rows=2)[0] if lazy else []
    numbers = {"lr": 1e-2, **numbers}
    decay = numbers.pop("weight_decay", 0.1)
    groups = [{"params": list(model.parameters()), "weight_decay": decay}]
    return model, FastAdamW(groups, **numbers, lazy=embeddings)


def assert_same(first: tuple[nn.Module, FastAdamW], second: tuple[nn.Module, FastAdamW]) -> None:
    """Compare weights, then moments and counts, to the bit."""
    for ours, theirs in zip(first[0].state_dict().values(), second[0].state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    states = [optimizer.state_dict()["state"] for _, optimizer in (first, second)]
    assert states[0].keys() == states[1].keys()
    for index, state in states[0].items():
        for name, tensor in state.items():
            assert tensor.numpy().tobytes() == states[1][index][name].numpy().tobytes(), name


# Gradients


@pytest.mark.parametrize("shape", [(40,), (5, 8), (2, 5, 4), (0,), (3, 0)])
@pytest.mark.parametrize("padding_idx", [None, 3])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_the_gradient_is_the_dense_one_to_the_bit(
    shape: tuple[int, ...], padding_idx: int | None, dtype: torch.dtype
) -> None:
    plain, _ = build(lazy=False, model=Words(padding_idx=padding_idx))
    lazy, optimizer = build(lazy=True, model=Words(padding_idx=padding_idx))
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):  # three backward passes are added
        ids = torch.randint(0, NUM_ROWS, shape, generator=generator).to(dtype)
        for model in (plain, lazy):
            (model.words(ids) * torch.linspace(-1, 2, WIDTH)).square().sum().backward()
    sparse = lazy.words.weight.grad
    assert sparse.is_sparse
    assert not padding_idx or padding_idx not in sparse._indices()
    merge_rows([lazy.words.weight])
    merged = lazy.words.weight.grad
    assert merged.is_coalesced() and merged._indices().unique().numel() == merged._indices().numel()
    assert torch.equal(merged.to_dense(), plain.words.weight.grad)
    assert optimizer.lazy


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(1, 40))
def test_sums_are_those_of_adding_one_after_the_other(ids: list[int], width: int) -> None:
    values = torch.randn(len(ids), width, generator=torch.Generator().manual_seed(len(ids)))
    expected = np.zeros((10, width), dtype=np.float32)
    for row, value in zip(ids, values.numpy(), strict=True):
        expected[row] += value
    rows, sums = sum_by_row(np.array(ids, dtype=np.int64), values)
    assert rows.tolist() == sorted(set(ids))
    assert np.array_equal(sums.numpy(), expected[rows])


def test_without_kernels_the_sums_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    ids, values = np.array([5, 2, 5, 5]), torch.randn(4, 7)
    expected = sum_by_row(ids, values)
    monkeypatch.setattr("headstart.models.row_gradients.kernels_or_none", lambda: None)
    rows, sums = sum_by_row(ids, values)
    assert rows.tolist() == [2, 5] and torch.equal(sums, expected[1])


# Bits


Step = tuple[list[list[int]], float, str]
STEPS = st.lists(
    st.tuples(
        st.lists(st.lists(st.integers(0, NUM_ROWS - 1), max_size=4), min_size=1, max_size=2),  # ids of micro-batches
        st.sampled_from([0.0, 1e-7, 1e-3, 1e-2, 0.5, 0.8]),  # learning rate; times a decay of 2 beyond 1, too
        st.sampled_from(["", "", "", "flush", "state", "look", "skip", "load", "sizes"]),
    ),
    min_size=1,
    max_size=25,
)


def do_steps(pair: tuple[Any, FastAdamW], steps: Sequence[Step], *, events: bool) -> None:
    """Train; what happens between the steps must not change a bit."""
    model, optimizer = pair
    for micro_batches, rate, event in steps:
        optimizer.param_groups[0]["lr"] = rate
        for ids in micro_batches:
            model(torch.tensor(ids, dtype=torch.int64)).backward()
        optimizer.gradient_factor = 0.3  # a norm sums rows in another order than whole matrices
        if event == "skip":  # the update is not made
            optimizer.zero_grad()
            continue
        optimizer.step()
        optimizer.zero_grad()
        if event == "sizes":  # other constants begin a new table; in both
            optimizer.param_groups[0]["betas"] = (0.8, 0.99) if rate < 1e-2 else (0.9, 0.9)
        if not events:
            continue
        if event == "flush":
            optimizer.flush()
        elif event == "state":
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        elif event == "load":
            model.load_state_dict(copy.deepcopy(model.state_dict()))
        elif event == "look":
            with torch.no_grad():
                model.eval()(torch.tensor([0, 3, 3]))
                model.train()


@settings(max_examples=60, deadline=None)
@given(STEPS, st.sampled_from([0.0, 0.01, 2.0]), st.sampled_from([(0.9, 0.999), (0.5, 0.6), (0.99, 0.9), (0.0, 0.5)]))
def test_lazy_rows_have_the_bits_of_dense_ones(
    steps: list[Step], weight_decay: float, betas: tuple[float, float]
) -> None:
    numbers = {"weight_decay": weight_decay, "betas": betas}
    dense, lazy = build(lazy=False, **numbers), build(lazy=True, **numbers)
    do_steps(dense, steps, events=False)
    do_steps(lazy, steps, events=True)
    assert_same(lazy, dense)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1, 3.0])
@pytest.mark.parametrize(
    ("betas", "eps"), [((0.9, 0.999), 1e-8), ((0.9, 0.9), 1e-8), ((0.95, 0.5), 1e-3), ((0.9, 0.95), 1e-20)]
)
@pytest.mark.parametrize("gradient", [1e-22, 1e-9, 1.0, 1e12])
def test_long_gaps_are_made_up_for_to_the_bit(
    weight_decay: float, betas: tuple[float, float], eps: float, gradient: float
) -> None:
    """Until the moments have gone to 0, over weights of every size, in pieces of every length."""
    scale = torch.logspace(-38, 6, NUM_ROWS * WIDTH).view(NUM_ROWS, WIDTH)
    scale[:, ::4] *= -1
    scale[:, 5] = 0.0
    scale[:, 6] = -0.0
    scale[:, 7] = 1.0  # a power of two: its lower neighbour is nearer
    pairs = []
    for is_lazy in (False, True):
        pair = build(lazy=is_lazy, weight_decay=weight_decay, betas=betas, eps=eps)
        with torch.no_grad():
            pair[0].words.weight.copy_(scale)
        pairs.append(pair)
    for step, (model, optimizer) in itertools.product(range(1_400), pairs):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - abs(step - 400) / 1_000)
        if step in (0, 3, 900):
            model.words.weight.grad = gradient * torch.arange(NUM_ROWS * WIDTH).view(NUM_ROWS, WIDTH).cos()
            if optimizer.lazy:
                model.words.weight.grad = row_gradient(np.arange(NUM_ROWS), model.words.weight.grad, NUM_ROWS)
        else:
            model.words.weight.grad = (
                row_gradient(np.empty(0, dtype=np.int64), torch.empty(0, WIDTH), NUM_ROWS)
                if optimizer.lazy
                else torch.zeros(NUM_ROWS, WIDTH)
            )
        optimizer.step()
        if optimizer.lazy and step // 7 % 52 < NUM_ROWS:  # each row in pieces of its own length
            optimizer.lazy[0].keeper.catch_up(np.array([step // 7 % 52]))  # type: ignore[union-attr]
    assert_same(pairs[1], pairs[0])


def test_moments_of_minus_zero_that_are_loaded_are_taken_as_zero() -> None:
    pairs = [build(lazy=is_lazy) for is_lazy in (False, True)]
    for model, optimizer in pairs:
        do_steps((model, optimizer), [([[1]], 1e-2, "")], events=False)
        state = copy.deepcopy(optimizer.state_dict())
        for name in ("exp_avg", "exp_avg_sq"):
            state["state"][0][name][:, ::2] = -0.0
        optimizer.load_state_dict(state)
        with torch.no_grad():
            model.words.weight[:, ::3] = -0.0
        do_steps((model, optimizer), [([[2]], 1e-2, "")] * 20, events=False)
    assert_same(pairs[1], pairs[0])


def test_a_full_table_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(missed_updates, "_MOST_UPDATES", 70)
    steps: list[Step] = [([[step % 5]], 1e-2, "") for step in range(200)]
    dense, lazy = build(lazy=False), build(lazy=True)
    do_steps(dense, steps, events=False)
    do_steps(lazy, steps, events=True)
    keeper = lazy[0].words.forward.__self__.keeper
    assert len(keeper._table) < 200
    assert_same(lazy, dense)


def test_rows_that_are_not_looked_up_are_not_touched() -> None:
    """Or else this would be no faster."""
    model, optimizer = build(lazy=True)
    held = model.words.weight.detach().clone()
    for _ in range(3):
        model(torch.tensor([1, 2])).backward()
        optimizer.step()
        optimizer.zero_grad()
    changed = (model.words.weight != held).any(1)
    assert changed.nonzero().flatten().tolist() == [1, 2]
    model.state_dict()
    assert (model.words.weight != held).any(1).all()


def test_working_copies_are_kept_with_the_rows() -> None:
    model, optimizer = build(lazy=True)
    copies = WorkingCopies([[model.words.weight]])
    copies.of(model.words.weight)
    optimizer.working_copies = copies
    do_steps((model, optimizer), [([[1, 2]], 0.1, ""), ([[3]], 0.1, ""), ([[1]], 0.1, "")], events=True)
    optimizer.flush()
    assert torch.equal(copies.tensors[model.words.weight], model.words.weight.detach().bfloat16())


# Every way to see the weights


@pytest.mark.parametrize(
    "see",
    [
        lambda model, optimizer: model.state_dict()["words.weight"],
        lambda model, optimizer: model.words.state_dict()["weight"],
        lambda model, optimizer: (optimizer.flush(), model.words.weight)[1],
        lambda model, optimizer: (optimizer.state_dict(), model.words.weight)[1],
        lambda model, optimizer: (optimizer.stop_lazy(), model.words.weight)[1],
        lambda model, optimizer: model.words(torch.arange(NUM_ROWS)),
        lambda model, optimizer: torch.inference_mode()(model.words)(torch.arange(NUM_ROWS)),
        lambda model, optimizer: copy.deepcopy(model).words.weight,
        lambda model, optimizer: pickle.loads(pickle.dumps(model)).words.weight,
        lambda model, optimizer: copy.deepcopy((model, optimizer))[0].words.weight,
    ],
)
def test_whoever_looks_sees_what_a_dense_training_shows(see: Callable[[Any, FastAdamW], torch.Tensor]) -> None:
    steps: list[Step] = [([[0, 1]], 0.1, ""), ([[2]], 0.1, ""), ([[1]], 0.1, "")]
    dense, lazy = build(lazy=False), build(lazy=True)
    do_steps(dense, steps, events=False)
    do_steps(lazy, steps, events=False)
    with torch.no_grad():
        assert torch.equal(see(*lazy), dense[0].words.weight)
    do_steps(dense, steps, events=False)
    do_steps(lazy, steps, events=False)
    assert_same(lazy, dense)


def test_weights_that_are_loaded_are_not_changed_by_what_was_missed() -> None:
    model, optimizer = build(lazy=True)
    do_steps((model, optimizer), [([[0, 1]], 0.1, ""), ([[2]], 0.1, "")], events=False)
    values = torch.full((NUM_ROWS, WIDTH), 7.0)
    model.load_state_dict({**copy.deepcopy(model.state_dict()), "words.weight": values})
    optimizer.flush()
    assert torch.equal(model.words.weight, values)
    do_steps((model, optimizer), [([[3]], 0.1, "")], events=False)
    state = copy.deepcopy(optimizer.state_dict())
    before = model.state_dict()["words.weight"].clone()
    do_steps((model, optimizer), [([[4]], 0.1, "")], events=False)
    optimizer.load_state_dict(state)
    assert optimizer.state[model.words.weight]["exp_avg"].equal(state["state"][0]["exp_avg"])
    assert not torch.equal(model.state_dict()["words.weight"], before)


def test_a_copy_is_an_ordinary_model() -> None:
    model, optimizer = build(lazy=True)
    do_steps((model, optimizer), [([[0, 1]], 0.1, "")], events=False)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other(torch.tensor([1])).backward()
        assert not other.words.weight.grad.is_sparse
        torch.optim.AdamW(other.parameters()).step()
        assert set(other.state_dict()) == set(model.state_dict())
    model(torch.tensor([1])).backward()
    assert model.words.weight.grad.is_sparse


def test_undo_leaves_an_ordinary_embedding() -> None:
    model, optimizer = build(lazy=True)
    do_steps((model, optimizer), [([[0, 1]], 0.1, "")], events=False)
    assert "forward" in model.words.__dict__
    optimizer.stop_lazy()
    assert "forward" not in model.words.__dict__ and not optimizer.lazy
    assert not model.words._state_dict_pre_hooks and not model.words._load_state_dict_pre_hooks
    do_steps((model, optimizer), [([[0, 1]], 0.1, "")], events=False)
    dense = build(lazy=False)
    do_steps(dense, [([[0, 1]], 0.1, "")] * 2, events=False)
    assert_same((model, optimizer), dense)


def test_weights_that_are_used_elsewhere_too_are_updated_whole() -> None:
    pairs = [build(lazy=is_lazy) for is_lazy in (False, True)]
    for _, (model, optimizer) in itertools.product(range(4), pairs):
        (model(torch.tensor([0, 2])) + model.words.weight.square().sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert not pairs[1][1].lazy
    assert_same(pairs[1], pairs[0])


def test_an_embedding_without_a_keeper_and_wrong_ids_are_as_ever() -> None:
    model = Words()
    (embedding,), _ = lazy_embeddings(model, min_rows=2)
    model(torch.tensor([1])).backward()
    assert model.words.weight.grad is not None and not model.words.weight.grad.is_sparse
    embedding.undo()
    model, _ = build(lazy=True)
    for ids in (torch.tensor([NUM_ROWS]), torch.tensor([-1])):
        with pytest.raises(IndexError):
            model.words(ids)
    with pytest.raises(RuntimeError, match=r"[Ee]xpected tensor"):
        model.words(torch.tensor([0.5]))


def test_a_model_that_is_converted_before_its_rows_are_up_to_date_is_an_error() -> None:
    model, optimizer = build(lazy=True)
    do_steps((model, optimizer), [([[0, 1]], 0.1, "")], events=False)
    model.bfloat16()
    with pytest.raises(RuntimeError, match=r"optimizer\.flush\(\) before"):
        optimizer.flush()


# Where it steps aside


class Louder(nn.Embedding):
    """An embedding with a forward pass of its own."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * F.embedding(input, self.weight)


@pytest.mark.parametrize(
    ("embedding", "reason"),
    [
        (nn.Embedding(NUM_ROWS, 4, sparse=True), "set to sparse"),
        (nn.Embedding(NUM_ROWS, 4, max_norm=1.0), "max_norm"),
        (nn.Embedding(NUM_ROWS, 4, scale_grad_by_freq=True), "scale_grad_by_freq"),
        (nn.Embedding(NUM_ROWS, 4).requires_grad_(False), "not trained"),
        (nn.Embedding(NUM_ROWS, 4).double(), "torch.float64"),
        (nn.Embedding(NUM_ROWS, 4, device="meta"), "meta"),
        (Louder(NUM_ROWS, 4), "a forward pass of its own"),
    ],
)
def test_it_says_which_embedding_it_leaves(embedding: nn.Embedding, reason: str) -> None:
    lazy, reasons = lazy_embeddings(nn.ModuleDict({"words": embedding}), min_rows=2)
    assert not lazy and reason in reasons["words"]


def test_shared_and_small_embeddings_are_left() -> None:
    tied = nn.ModuleDict({"words": nn.Embedding(2_000, 4), "head": nn.Linear(4, 2_000), "places": nn.Embedding(512, 4)})
    tied["head"].weight = tied["words"].weight
    assert lazy_embeddings(tied) == ([], {"words": "its weights are shared with another module"})
    free = nn.ModuleDict({"words": nn.Embedding(2_000, 4), "places": nn.Embedding(512, 4)})
    (embedding,), reasons = lazy_embeddings(free)
    assert embedding.module is free["words"] and not reasons
    assert lazy_embeddings(free)[1] == {"words": "it has a forward pass of its own"}


def test_without_kernels_there_are_no_lazy_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headstart.models.lazy_embedding.kernels_or_none", lambda: None)
    monkeypatch.setattr("headstart.models.lazy_embedding.available", lambda: "numba is not installed")
    assert lazy_embeddings(Words(), min_rows=2) == ([], {"words": "numba is not installed"})


def test_an_epsilon_of_zero_and_parameters_of_others_are_not_kept() -> None:
    model, optimizer = build(lazy=True, eps=0.0)
    assert not optimizer.lazy
    model(torch.tensor([1])).backward()
    assert not model.words.weight.grad.is_sparse
    model = Words()
    lazy, _ = lazy_embeddings(model, min_rows=2)
    assert isinstance(lazy[0], LazyEmbedding)
    assert not FastAdamW(model.head.parameters(), lazy=lazy).lazy


# Several processes


class Two(Processes):
    """This process, and another one whose gradient is known."""

    count = 2

    def __init__(self, other: torch.Tensor | None) -> None:
        self.other = other

    def any(self, flags: Sequence[bool]) -> list[bool]:
        return [flags[0] or (self.other is not None and not self.other.is_sparse)]

    def add_array(self, values: np.ndarray) -> np.ndarray:
        values = values.copy()
        if self.other is not None:
            values[rows_and_values(self.other)[0]] += 1
        return values


def rows_of(ids: list[int]) -> torch.Tensor:
    rows, values = sum_by_row(np.array(ids, dtype=np.int64), torch.ones(len(ids), 3))
    return row_gradient(rows, values, 6)


@pytest.mark.parametrize("own", [None, [1, 4, 4], []])
@pytest.mark.parametrize("other", [None, [0, 4], [5]])
def test_every_process_gets_the_rows_of_all(own: list[int] | None, other: list[int] | None) -> None:
    weight = nn.Parameter(torch.zeros(6, 3))
    weight.grad = None if own is None else rows_of(own)
    before = torch.zeros(6, 3) if weight.grad is None else weight.grad.to_dense()
    share_rows(Two(None if other is None else rows_of(other)), weight, MemoryWatch())
    assert weight.grad is not None
    assert weight.grad._indices().flatten().tolist() == sorted({*(own or []), *(other or [])})
    assert torch.equal(weight.grad.to_dense(), before)


@pytest.mark.parametrize("own", [None, [1, 4, 4]])
def test_a_dense_gradient_of_one_process_makes_those_of_all_dense(own: list[int] | None) -> None:
    weight = nn.Parameter(torch.zeros(6, 3))
    weight.grad = None if own is None else rows_of(own)
    before = torch.zeros(6, 3) if weight.grad is None else weight.grad.to_dense()
    share_rows(Two(torch.ones(6, 3)), weight, MemoryWatch())
    assert weight.grad is not None and not weight.grad.is_sparse
    assert torch.equal(weight.grad, before)
