"""Fixtures of the tests of the drop-in."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def quick_collections() -> Iterator[None]:
    """Keep what the libraries have made out of the garbage collector, which transformers runs at each training."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
