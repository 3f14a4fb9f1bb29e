import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from headstart.models.dropout import RandomKey, draws_global_numbers, keyed_randomness, row_mask

CPU = torch.device("cpu")


def key(rows: list[int], lengths: list[int], step: int = 0, seed: int = 0) -> RandomKey:
    return RandomKey(seed, step, rows, lengths)


@given(
    st.lists(st.tuples(st.integers(0, 10**9), st.integers(1, 6)), min_size=1, max_size=4, unique_by=lambda row: row[0]),
    st.integers(0, 4),
    st.integers(0, 1000),
)
def test_padding_and_neighbours_do_not_move_the_draws(rows: list[tuple[int, int]], padding: int, step: int) -> None:
    ids, lengths = [row for row, _ in rows], [length for _, length in rows]
    width = max(lengths) + padding
    together = row_mask((len(rows), width, 8), 0.5, key(ids, lengths, step), site=2)
    for index, (row, length) in enumerate(rows):
        alone = row_mask((1, length, 8), 0.5, key([row], [length], step), site=2)
        assert (together[index, :length] == alone[0]).all()
        assert together[index, length:].all()


def test_attention_masks_are_drawn_inside_the_row() -> None:
    wide = row_mask((2, 3, 7, 7), 0.5, key([4, 9], [5, 2]), 0)
    narrow = row_mask((1, 3, 2, 2), 0.5, key([9], [2]), 0)
    assert (wide[1, :, :2, :2] == narrow[0]).all()
    assert wide[1, :, 2:, :].all() and wide[1, :, :, 2:].all()


@pytest.mark.parametrize("change", ["seed", "step", "row", "site"])
def test_every_part_of_the_key_changes_the_mask(change: str) -> None:
    first = row_mask((1, 50, 8), 0.5, key([1], [50]), 0)
    other = {
        "seed": (key([1], [50], seed=1), 0),
        "step": (key([1], [50], step=1), 0),
        "row": (key([2], [50]), 0),
        "site": (key([1], [50]), 1),
    }[change]
    assert (first != row_mask((1, 50, 8), 0.5, *other)).any()


@pytest.mark.parametrize("probability", [0.02, 0.1, 0.5])
def test_the_share_dropped_is_the_probability(probability: float) -> None:
    mask = row_mask((8, 200, 200), probability, key(list(range(8)), [200] * 8), 0)
    spread = math.sqrt(probability * (1 - probability) / mask.size)
    assert abs((1 - mask.mean()) - probability) < 5 * spread + 1e-4


def test_dropout_keeps_the_expected_value_and_evaluation_is_untouched() -> None:
    values = torch.ones(4, 100, 50)
    with keyed_randomness(key([1, 2, 3, 4], [100] * 4), CPU):
        dropped = functional.dropout(values, 0.3, training=True)
        assert functional.dropout(values, 0.3, training=False) is values
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.02)
    assert set(np.round(dropped.unique().numpy(), 3)) == {0.0, np.float32(round(1 / 0.7, 3))}


def test_the_global_stream_is_left_as_it_was() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with keyed_randomness(key([1], [4]), CPU):
        functional.dropout(torch.ones(1, 4, 4), 0.5)
        torch.rand(10)
    assert torch.equal(torch.rand(3), expected)


def test_draws_without_rows_are_keyed_by_the_micro_batch() -> None:
    def draw(micro_batch: int) -> torch.Tensor:
        with keyed_randomness(RandomKey(0, 3, [1, 2], [2, 2], micro_batch), CPU):
            return torch.rand(4)

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))


@pytest.mark.parametrize("mask_kind", ["none", "bool", "float", "causal"])
def test_attention_without_drops_is_pytorchs(mask_kind: str) -> None:
    """With a probability that rounds to no drop, the intercepted attention equals PyTorch's own."""
    torch.manual_seed(0)
    query, keys, values = (torch.randn(2, 3, 5, 4) for _ in range(3))
    allowed = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], dtype=torch.bool)[:, None, None, :]
    mask = {"bool": allowed, "float": torch.where(allowed, 0.0, -1e9)}.get(mask_kind)
    causal = mask_kind == "causal"
    expected = functional.scaled_dot_product_attention(query, keys, values, mask, is_causal=causal)
    with keyed_randomness(key([0, 1], [5, 3]), CPU):
        found = functional.scaled_dot_product_attention(query, keys, values, mask, dropout_p=1e-9, is_causal=causal)
    torch.testing.assert_close(found, expected)


def test_gradients_flow_through_the_kept_elements_only() -> None:
    values = torch.ones(1, 6, 6, requires_grad=True)
    with keyed_randomness(key([3], [6]), CPU):
        dropped = functional.dropout(values, 0.5)
    dropped.sum().backward()
    assert values.grad is not None
    assert torch.equal(values.grad == 0, dropped.detach() == 0)


def test_a_model_with_draws_of_its_own_is_found() -> None:
    one = key([0], [3])
    assert not draws_global_numbers(lambda: functional.dropout(torch.ones(1, 3, 4), 0.5), one, CPU)
    assert draws_global_numbers(lambda: torch.rand(2), one, CPU)
    assert draws_global_numbers(lambda: None, one, torch.device("meta"))
