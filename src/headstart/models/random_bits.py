"""Random bits as a function of a key: no stream, no state, drawn for a whole batch at once.

May import layers 0 and 1. A key is a 64-bit integer. Splitting a key by a number gives another key that looks
independent of it, so a key for (seed, step, row, position) is four splits, and the bits of an element need no other
element's:

    key -> mix(key + (number + 1) * GOLDEN) -> key of that number -> ... -> 64 bits = four decisions

This is the generator SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"; the mixing
constants are variant 13 of Stafford), read at any place of its sequence instead of one number after the other. It needs
adding, multiplying and shifting of 64-bit integers alone, on any device whose integers wrap around.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence

import numpy as np
import torch

__all__ = ["LEVELS", "FewNumbers", "fold", "fold_text", "keep_mask", "split"]

LEVELS = 1 << 16
"""Sixteen bits a decision: a probability is met to within 1/131072 (0.1 becomes 0.100006)."""

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB
_FIRST_WORD, _SECOND_WORD = np.uint64(_FIRST), np.uint64(_SECOND)
_S30, _S27, _S31 = np.uint64(30), np.uint64(27), np.uint64(31)
_DECISIONS_PER_WORD = 4
# Words worked on at a time: half a megabyte, and as much for what is shifted, stay in a core's own cache.
_CHUNK_WORDS = 1 << 16


def fold(*numbers: int) -> int:
    """Make one key from several whole numbers; their order matters.

    Args:
        numbers: of any size; 64 bits of each count.

    Returns:
        64 bits, at least 0.

    Example:
        >>> fold(1, 2) != fold(2, 1)
        True
    """
    key = 0
    for number in numbers:
        key = _mix_int((key + (number + 1) * _GOLDEN) & _MASK)
    return key


@functools.lru_cache(1024)
def fold_text(text: str) -> int:
    """Make a key from a text, the same in every process and on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def split(keys: int | torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Give the key of each number under each key.

    Args:
        keys: one key, or an int64 tensor of keys that broadcasts with `numbers`.
        numbers: int64; its device is that of the result.

    Returns:
        int64 keys, of the shape of both broadcast.

    Example:
        >>> split(7, torch.tensor([0, 1])).tolist() == [split(7, torch.tensor([n])).item() for n in (0, 1)]
        True
    """
    if isinstance(keys, int):
        keys = torch.tensor(_signed(keys), device=numbers.device)
    words = (numbers + 1) * _signed(_GOLDEN) + keys
    return _mix(words, torch.empty_like(words))


class FewNumbers:
    """A few numbers, on the CPU, whose keys are asked for under one key after another.

    Args:
        numbers: int64.

    Example:
        >>> FewNumbers([0, 1]).split(7).equal(split(7, torch.tensor([0, 1])))
        True
    """

    def __init__(self, numbers: Sequence[int]) -> None:
        self._words = (np.asarray(numbers, dtype=np.int64).astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN)

    def split(self, key: int) -> torch.Tensor:
        """Give what `split` gives, with less to do for each operation."""
        words = self._words + np.uint64(key & _MASK)
        words ^= words >> _S30
        words *= _FIRST_WORD
        words ^= words >> _S27
        words *= _SECOND_WORD
        words ^= words >> _S31
        return torch.from_numpy(words.view(np.int64))


def keep_mask(keys: torch.Tensor, size: int, probability: float) -> torch.Tensor:
    """Draw `size` decisions for each key, each False with the given probability.

    Args:
        keys: int64, of any shape.
        size: of the last axis of the result.
        probability: 0 to 1, met to within 1/131072.

    Returns:
        bool tensor, shape (*keys.shape, size); decision n of a key does not depend on `size`.
    """
    num_words = -(-size // _DECISIONS_PER_WORD)
    flat = keys.reshape(-1, 1)
    kept = torch.empty((flat.shape[0], size), dtype=torch.bool, device=keys.device)
    # Bits compare as signed numbers: the smallest of them are the dropped ones.
    threshold = round(probability * LEVELS) - LEVELS // 2
    if threshold == LEVELS // 2:  # all of them, which sixteen bits cannot say
        return torch.zeros((*keys.shape, size), dtype=torch.bool, device=keys.device)
    places = torch.arange(1, num_words + 1, device=keys.device) * _signed(_GOLDEN)
    on_cpu = keys.device.type == "cpu"
    lines = max(1, _CHUNK_WORDS // max(1, num_words)) if on_cpu else max(1, flat.shape[0])
    spare = torch.empty((2, min(lines, flat.shape[0]), num_words), dtype=torch.int64, device=keys.device)
    for start in range(0, flat.shape[0], lines):
        part = flat[start : start + lines]
        words, scratch = spare[:, : part.shape[0]]
        bits = _mix(torch.add(part, places, out=words), scratch).view(torch.int16)
        torch.ge(bits[:, :size], threshold, out=kept[start : start + lines])
    return kept.reshape(*keys.shape, size)


def _mix(words: torch.Tensor, scratch: torch.Tensor) -> torch.Tensor:
    """Mix the bits of each word, in place."""
    for shift, factor in ((30, _FIRST), (27, _SECOND), (31, None)):
        # Shifting copies the sign downwards; the mask takes it away.
        torch.bitwise_right_shift(words, shift, out=scratch)
        words.bitwise_xor_(scratch.bitwise_and_((1 << (64 - shift)) - 1))
        if factor is not None:
            words.mul_(_signed(factor))
    return words


def _mix_int(word: int) -> int:
    word = (word ^ (word >> 30)) * _FIRST & _MASK
    word = (word ^ (word >> 27)) * _SECOND & _MASK
    return word ^ (word >> 31)


def _signed(number: int) -> int:
    """Give the signed 64-bit integer of the same bits."""
    number &= _MASK
    return number - (1 << 64) if number >> 63 else number
