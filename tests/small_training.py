"""A small training that can be stopped anywhere, its rows, and the bits that it leaves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from headstart.api import Preparation, prepare
from headstart.baselines import Baseline, fit_baselines
from headstart.records import Record, StepRecord
from headstart.tasks import SequenceClassification

__all__ = ["Settings", "bits_of", "finish", "start", "tfidf_logistic", "train_to", "write_reviews"]

# Fields that say how long something took: all that may differ between two equal runs.
CLOCK = {"seconds"}

Settings = dict[str, Any]


def write_reviews(path: Path, num_rows: int) -> Path:
    """Write rows of several lengths whose label follows from one word, every text its own."""
    words = {"good": ["good", "great", "lovely", "fine"], "bad": ["bad", "dull", "awful", "weak"]}
    lines = ["text,label"]
    for index in range(num_rows):
        label = "good" if index % 2 else "bad"
        tail = ["", " with music", " and a very quiet ending", " so was this scene of it"][index // 7 % 4]
        lines.append(f"the film was {words[label][index // 2 % 4]}{tail} {index},{label}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def start(settings: Settings, run_dir: Path, *, resume: bool = False) -> Preparation:
    """Prepare a training, or go on with the one in `run_dir`."""
    values = {"output.run": str(run_dir)}
    return prepare(values=values if resume else {**settings, **values}, resume=resume)


def train_to(preparation: Preparation, step: int | None = None) -> Iterator[Record]:
    """Yield the records up to that of `step`, then ask to stop and save; None trains to the end."""
    for record in preparation.train():
        yield record
        if isinstance(record, StepRecord) and record.step == step:
            preparation.requests.add("stop")


def bits_of(run_dir: Path) -> dict[str, Any]:
    """Give everything that a run leaves and that must not depend on where it was stopped."""

    def digest(path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    log = [json.loads(line) for line in (run_dir / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return {
        "model": digest(run_dir / "model" / "model.safetensors"),
        "predictions": digest(run_dir / "predictions.parquet"),
        "scores": json.loads((run_dir / "scores.json").read_text(encoding="utf-8")),
        # Where a run stopped and saved is the difference between two equal runs; what it computed is none.
        "log": [
            {name: value for name, value in record.items() if name not in CLOCK}
            for record in log
            if record["record"] in ("step", "evaluation")
        ],
    }


def finish(settings: Settings, run_dir: Path, *, resume: bool = False) -> dict[str, Any]:
    """Train to the end without a stop, score, and give the bits."""
    preparation = start(settings, run_dir, resume=resume)
    for _ in preparation.train():
        pass
    preparation.finish()
    return bits_of(run_dir)


def tfidf_logistic(
    texts: list[str], pairs: list[str] | None, labels: np.ndarray, num_labels: int, *, seed: int = 0
) -> Baseline:
    """Fit the linear baseline of one class a row."""
    task = SequenceClassification(tuple(range(num_labels)), "text", None, "label")
    return fit_baselines(task, texts, pairs, labels, seed=seed)["tfidf_logistic"]
