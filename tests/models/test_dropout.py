"""Dropout keyed by row: what the draws depend on, and what they leave alone."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from headstart.models.dropout import (
    RandomKey,
    find_unkeyed_draws,
    keyed_randomness,
    keyed_streams,
    recompute_contexts,
    row_mask,
)

CPU = torch.device("cpu")


def key(rows: list[int], step: int = 0, seed: int = 0) -> RandomKey:
    return RandomKey(seed, step, rows)


@given(
    st.lists(st.tuples(st.integers(0, 2**62), st.integers(1, 6)), min_size=1, max_size=4, unique_by=lambda row: row[0]),
    st.integers(0, 4),
    st.integers(0, 1000),
)
def test_padding_and_neighbours_do_not_move_the_draws(rows: list[tuple[int, int]], padding: int, step: int) -> None:
    ids = [row for row, _ in rows]
    width = max(length for _, length in rows) + padding
    together = row_mask((len(rows), width, 8), 0.5, key(ids, step), "dropout")
    scores = row_mask((len(rows), 3, width, width), 0.5, key(ids, step), "attention")
    for index, (row, length) in enumerate(rows):
        alone = row_mask((1, length, 8), 0.5, key([row], step), "dropout")
        assert torch.equal(together[index, :length], alone[0])
        alone = row_mask((1, 3, length, length), 0.5, key([row], step), "attention")
        assert torch.equal(scores[index, :, :length, :length], alone[0])


@pytest.mark.parametrize("change", ["seed", "step", "row", "site"])
def test_every_part_of_the_key_changes_the_mask(change: str) -> None:
    first = row_mask((1, 50, 8), 0.5, key([1]), "a")
    other = {
        "seed": (key([1], seed=1), "a"),
        "step": (key([1], step=1), "a"),
        "row": (key([2]), "a"),
        "site": (key([1]), "b"),
    }[change]
    found = row_mask((1, 50, 8), 0.5, *other)
    assert 0.3 < (first != found).double().mean().item() < 0.7


class Block(torch.nn.Module):
    """Two dropouts of its own, one of which can be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Dropout(0.5), torch.nn.Dropout(0.5)

    def forward(self, values: torch.Tensor, *, with_first: bool = True, times: int = 1) -> list[torch.Tensor]:
        first = [self.first(values)] if with_first else []
        return [*first, *(self.second(values) for _ in range(times))]


def test_a_module_draws_by_its_name_and_by_how_often_it_was_called() -> None:
    block, values = Block(), torch.ones(2, 6, 8)

    def draw(**given: object) -> list[torch.Tensor]:
        with keyed_randomness(key([3, 4]), CPU, block):
            return block(values, **given)  # type: ignore[no-any-return]

    whole = draw(times=2)
    assert torch.equal(draw(with_first=False)[0], whole[1]), "another module that does not draw moves nothing"
    assert not torch.equal(whole[1], whole[2]), "a module that is used twice draws anew"
    assert not torch.equal(whole[0], whole[1])


def test_dropout_keeps_the_expected_value_and_evaluation_is_untouched() -> None:
    values = torch.ones(4, 100, 50)
    with keyed_randomness(key([1, 2, 3, 4]), CPU):
        dropped = functional.dropout(values, 0.3, training=True)
        assert functional.dropout(values, 0.3, training=False) is values
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.02)
    assert set(np.round(dropped.unique().numpy(), 3)) == {0.0, np.float32(round(1 / 0.7, 3))}


def test_the_global_stream_is_left_as_it_was() -> None:
    """PyTorch's, NumPy's and Python's, also after an error."""

    def draw() -> list[object]:
        return [torch.rand(3).tolist(), np.random.random(3).tolist(), random.random()]

    def seed() -> None:
        torch.manual_seed(5), np.random.seed(5), random.seed(5)

    seed()
    expected = draw()
    seed()
    with pytest.raises(KeyError), keyed_randomness(key([1]), CPU):
        functional.dropout(torch.ones(1, 4, 4), 0.5)
        draw()
        raise KeyError
    assert draw() == expected


def test_draws_without_rows_are_keyed_by_the_micro_batch() -> None:
    def draw(micro_batch: int) -> list[object]:
        with keyed_randomness(RandomKey(0, 3, [1, 2], micro_batch), CPU):
            return [torch.rand(4).tolist(), np.random.random(3).tolist(), random.random()]

    assert draw(0) == draw(0)
    assert all(first != other for first, other in zip(draw(0), draw(1), strict=True))


@pytest.mark.parametrize("mask_kind", ["none", "bool", "float", "causal"])
def test_attention_without_drops_is_pytorchs(mask_kind: str) -> None:
    """With a probability that rounds to no drop, the intercepted attention equals PyTorch's own."""
    torch.manual_seed(0)
    query, keys, values = (torch.randn(2, 3, 5, 4) for _ in range(3))
    allowed = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], dtype=torch.bool)[:, None, None, :]
    mask = {"bool": allowed, "float": torch.where(allowed, 0.0, -1e9)}.get(mask_kind)
    causal = mask_kind == "causal"
    expected = functional.scaled_dot_product_attention(query, keys, values, mask, is_causal=causal)
    with keyed_randomness(key([0, 1]), CPU):
        found = functional.scaled_dot_product_attention(query, keys, values, mask, dropout_p=1e-9, is_causal=causal)
    torch.testing.assert_close(found, expected)


def test_gradients_flow_through_the_kept_elements_only() -> None:
    values = torch.ones(1, 6, 6, requires_grad=True)
    with keyed_randomness(key([3]), CPU):
        dropped = functional.dropout(values, 0.5)
    dropped.sum().backward()
    assert values.grad is not None
    assert torch.equal(values.grad == 0, dropped.detach() == 0)


def test_dropout_of_everything_leaves_nothing() -> None:
    with keyed_randomness(key([3]), CPU):
        assert (functional.dropout(torch.ones(1, 6), 1.0) == 0).all()


def test_dropout_in_place_changes_its_input() -> None:
    values = torch.ones(1, 600)
    with keyed_randomness(key([3]), CPU):
        assert functional.dropout(values, 0.5, inplace=True) is values
    assert (values == 0).any() and (values == 2).any()


class Careless(torch.nn.Module):
    """Drops out a tensor that belongs to no row, or draws in another way."""

    def __init__(self, draw: str) -> None:
        super().__init__()
        self.draw, self.positions = draw, torch.nn.Dropout(0.5)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        if self.draw == "positions":
            return values + self.positions(torch.ones(5, 8))
        noise = {"torch": torch.rand, "numpy": np.random.random, "python": lambda n: random.random()}
        return values + torch.as_tensor(noise[self.draw](1) if self.draw in noise else 0.0)


@pytest.mark.parametrize(
    ("draw", "found"),
    [
        ("nothing", []),
        ("positions", ["positions"]),
        ("torch", ["a global stream"]),
        ("numpy", ["a global stream"]),
        ("python", ["a global stream"]),
    ],
)
def test_draws_that_are_not_keyed_are_named(draw: str, found: list[str]) -> None:
    model = Careless(draw)
    values = torch.ones(2, 5, 8)
    assert find_unkeyed_draws(lambda: model(values), key([0, 1]), CPU, model) == found


def test_a_device_without_keyed_draws_is_said() -> None:
    assert find_unkeyed_draws(lambda: None, key([0]), torch.device("meta")) == ["all of them"]


class TwoBlocks(torch.nn.Module):
    """Two blocks that drop twice each, computed again in the backward pass or not."""

    def __init__(self, *, again: bool) -> None:
        super().__init__()
        self.again = again
        self.blocks = torch.nn.ModuleList([torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)])
        self.drop = torch.nn.Dropout(0.5)

    def block(self, layer: torch.nn.Module, values: torch.Tensor) -> torch.Tensor:
        return self.drop(torch.tanh(layer(self.drop(values)))) + torch.rand(())

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        for layer in self.blocks:
            if self.again:
                values = checkpoint(self.block, layer, values, use_reentrant=False, context_fn=recompute_contexts)
            else:
                values = self.block(layer, values)
        return values


def test_what_is_computed_again_drops_the_same_elements() -> None:
    gradients = []
    for again in (False, True):
        torch.manual_seed(0)
        model, values = TwoBlocks(again=again), torch.ones(3, 5, 8)
        with keyed_randomness(key([3, 5, 8]), CPU, model):
            loss = model(values).square().sum()
        loss.backward()  # behind the context, as in the loop
        gradients.append([parameter.grad for parameter in model.parameters()])
    for once, twice in zip(*gradients, strict=True):
        assert torch.equal(once, twice)


def test_keyed_streams_are_a_function_of_the_numbers_and_leave_the_streams_alone() -> None:
    def draw() -> tuple[float, float, float]:
        return float(torch.rand(())), float(np.random.random()), random.random()

    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]
    with keyed_streams(1, 2):
        first = draw()
    with keyed_streams(1, 2):
        assert draw() == first
    with keyed_streams(2, 1):
        assert draw() != first
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
