"""The generator: its published sequence, its independence of everything but its key, and the quality of its bits."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from headstart.models.random_bits import fold, fold_text, keep_mask, split

KEYS = st.integers(0, 2**64 - 1)

# The first numbers of SplitMix64 with the state 1234567, as many implementations list them.
PUBLISHED = [
    6457827717110365317,
    3203168211198807973,
    9817491932198370423,
    4593380528125082431,
    16408922859458223821,
]


def unsigned(words: torch.Tensor) -> np.ndarray:
    return words.numpy().view(np.uint64)


def test_the_sequence_is_the_published_one() -> None:
    assert unsigned(split(1234567, torch.arange(5))).tolist() == PUBLISHED


@given(KEYS, st.lists(st.integers(0, 2**40), min_size=1, max_size=4))
def test_a_key_on_the_host_is_a_key_in_a_tensor(key: int, numbers: list[int]) -> None:
    """`fold` works in Python's integers, `split` in those of a tensor, which wrap around."""
    folded = fold(key, *numbers)
    keys = split(fold(key), torch.tensor(numbers[0]))
    for number in numbers[1:]:
        keys = split(keys, torch.tensor(number))
    assert int(unsigned(keys.reshape(1))[0]) == folded


@given(KEYS, st.integers(1, 40), st.integers(0, 40))
def test_a_decision_does_not_depend_on_how_many_follow(key: int, size: int, more: int) -> None:
    keys = split(key, torch.arange(3))
    assert torch.equal(keep_mask(keys, size + more, 0.5)[:, :size], keep_mask(keys, size, 0.5))


def test_chunks_are_put_together_in_order() -> None:
    """More words than are worked on at a time."""
    keys = split(5, torch.arange(700))
    whole = keep_mask(keys, 1000, 0.3)
    assert all(torch.equal(whole[row], keep_mask(keys[row], 1000, 0.3)) for row in (0, 261, 262, 699))


def test_keys_of_any_shape_give_a_last_axis_more() -> None:
    keys = split(split(1, torch.arange(2))[:, None], torch.arange(3))
    assert keep_mask(keys, 5, 0.5).shape == (2, 3, 5)
    assert keep_mask(keys[:, :0], 5, 0.5).shape == (2, 0, 5)
    assert keep_mask(keys, 0, 0.5).shape == (2, 3, 0)


@pytest.mark.parametrize(("probability", "kept"), [(0.0, True), (1.0, False)])
def test_the_ends_of_probability_are_exact(probability: float, kept: bool) -> None:
    assert (keep_mask(split(3, torch.arange(50)), 4000, probability) == kept).all()


@pytest.mark.parametrize("probability", [0.001, 0.1, 0.5, 0.9])
def test_the_share_dropped_is_the_probability(probability: float) -> None:
    mask = keep_mask(split(3, torch.arange(1000)), 2000, probability)
    spread = math.sqrt(probability * (1 - probability) / mask.numel())
    assert abs((1 - mask.double().mean().item()) - probability) < 4 * spread + 2**-17


def test_sixteen_bits_are_uniform() -> None:
    drawn = split(11, torch.arange(400_000)).view(torch.int16).reshape(-1, 4).numpy()
    for lane in range(4):
        counts = np.bincount(drawn[:, lane].astype(np.int64) + 2**15, minlength=2**16)
        assert 1e-4 < stats.chisquare(counts.reshape(256, 256).sum(1)).pvalue < 1 - 1e-4


def test_neighbours_are_independent() -> None:
    """Rows, steps, positions and lanes beside each other: no two masks agree more often than chance has it."""
    keys = split(split(fold(7), torch.arange(20))[:, None], torch.arange(50))
    mask = keep_mask(keys, 400, 0.5).numpy().astype(np.float64) * 2 - 1
    for axis in range(3):
        a, b = np.take(mask, range(mask.shape[axis] - 1), axis), np.take(mask, range(1, mask.shape[axis]), axis)
        assert abs((a * b).mean()) < 4 / math.sqrt(a.size)
    for distance in (2, 3, 4, 5, 8):
        assert abs((mask[:, :, distance:] * mask[:, :, :-distance]).mean()) < 4 / math.sqrt(mask.size)


def test_a_text_has_the_same_key_in_every_process() -> None:
    """Python's own hash has not."""
    assert fold_text("bert.encoder.layer.0") == 0x3DB9EABACC675CE
    assert fold_text("a") != fold_text("b")
