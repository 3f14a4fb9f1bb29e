"""What a kernel must know to drop elements as `models/dropout.py` does.

May import layers 0 and 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numba import njit

from headstart.models.kernels.launch import bits_of
from headstart.models.random_bits import LEVELS

__all__ = ["NO_DROPS", "Drops", "split_key"]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31 = np.uint64(30), np.uint64(27), np.uint64(31)


@njit(inline="always")
def split_key(key, number):
    """Give the key of a number under a key: `random_bits.split`, one at a time."""
    word = np.uint64(key) + np.uint64(number + 1) * _GOLDEN
    word = (word ^ (word >> _S30)) * _FIRST
    word = (word ^ (word >> _S27)) * _SECOND
    return np.int64(word ^ (word >> _S31))


@dataclass(frozen=True)
class Drops:
    """Which elements of a tensor are dropped.

    Args:
        keys: int64 key of each row, shape (B,).
        probability: of dropping an element; 0 drops none.
        places: which token of which row each line is, where rows of tokens lie one after the other without padding:
            int64, row * 2**32 + place in the row; None is rows of one length.
    """

    keys: torch.Tensor
    probability: float
    places: torch.Tensor | None = None

    @property
    def level(self) -> int:
        """How many of `LEVELS` are dropped; 0 for probabilities as small as that."""
        return round(self.probability * LEVELS)

    @property
    def place_numbers(self) -> tuple[int, int, int, int]:
        """Give what kernels over lines take: the address of `places`, or 0, and `numbers`."""
        return 0 if self.places is None else self.places.data_ptr(), *self.numbers()

    def numbers(self) -> tuple[int, int, int]:
        """Give what kernels take: the keys' address, the largest dropped sixteen bits + 1, the factor of the kept."""
        level = self.level
        return self.keys.data_ptr(), level - LEVELS // 2, bits_of(LEVELS / (LEVELS - level) if level < LEVELS else 0.0)


NO_DROPS = Drops(torch.zeros(1, dtype=torch.int64), 0.0)
"""Nothing is dropped."""
