"""What the garbage collector passes over while a training runs."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from headstart.training.garbage import old_objects_kept


@pytest.fixture(autouse=True)
def nothing_put_aside() -> Iterator[None]:
    """Begin without what other tests have put aside."""
    count = gc.get_freeze_count()
    gc.unfreeze()
    yield
    if count:
        gc.freeze()


class Knot:
    def __init__(self) -> None:
        self.itself = self


def test_garbage_of_the_training_is_collected_and_old_objects_come_back() -> None:
    gc.collect()
    with old_objects_kept():
        assert gc.get_freeze_count() > 0
        knot = Knot()
        seen = weakref.ref(knot)
        del knot
        gc.collect()
        assert seen() is None
    assert gc.get_freeze_count() == 0


def test_what_somebody_else_put_aside_stays_there() -> None:
    gc.freeze()
    try:
        before = gc.get_freeze_count()
        with old_objects_kept():
            assert gc.get_freeze_count() == before
        assert gc.get_freeze_count() == before
    finally:
        gc.unfreeze()
