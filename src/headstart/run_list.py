"""The runs of a folder, a line each, the best first.

May import layers 0 to 4.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from headstart.errors import HeadstartError
from headstart.recipe import build_recipe
from headstart.run_files import read_json
from headstart.runlog import (
    DATA_FILE,
    RECIPE_FILE,
    SCORES_FILE,
    STUDY_FILE,
    TUNING_FILE,
    StepRecord,
    StopRecord,
    read_log,
)

__all__ = ["RunEntry", "list_runs"]


@dataclass(frozen=True)
class RunEntry:
    """One line of a list of runs.

    Args:
        run_dir, name: the folder and its name.
        status: "done", "stopped" (can be resumed), "failed" (a loss was not finite), "unfinished", or "broken" (its
            files cannot be read).
        score_name, score: the first score of the test split, or else of validation; None without one.
        split: the split of that score.
        model, task: from the recipe.
        rows: training rows.
        seconds: of training.
        created: when the run was started.
    """

    run_dir: Path
    name: str
    status: str
    score_name: str | None
    score: dict[str, float | None] | None
    split: str | None
    model: str
    task: str
    rows: int
    seconds: float
    created: datetime.datetime


def list_runs(root: str | Path = "runs") -> list[RunEntry]:
    """List the runs in a folder, the best first; those without a score come last.

    Runs with different first scores are grouped by the score's name: their numbers cannot be compared.
    """
    from headstart.metrics import higher_is_better

    root = Path(root)
    if (root / RECIPE_FILE).exists() and not any((root / name).exists() for name in (STUDY_FILE, TUNING_FILE)):
        entries = [_entry_or_broken(root, root.name)]
    else:
        entries = [_entry_or_broken(folder, name) for folder, name in _folders(root)]

    def order(entry: RunEntry) -> tuple[bool, str, float, str]:
        value = entry.score["value"] if entry.score is not None else None
        if entry.score_name is None or value is None:
            return (True, "", 0.0, entry.name)
        return (False, entry.score_name, -value if higher_is_better(entry.score_name) else value, entry.name)

    return sorted(entries, key=order)


def _folders(root: Path, prefix: str = "") -> Iterator[tuple[Path, str]]:
    """Find run folders and their names; those of a study, and the best of a search, have its name before theirs."""
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        if (folder / STUDY_FILE).exists() or (folder / TUNING_FILE).exists():
            yield from _folders(folder, f"{prefix}{folder.name}/")
        elif (root / TUNING_FILE).exists() and not (folder / SCORES_FILE).exists():
            continue
        elif (folder / RECIPE_FILE).exists():
            yield folder, prefix + folder.name


def _entry_or_broken(folder: Path, name: str) -> RunEntry:
    """Keep one unreadable run from hiding the others."""
    try:
        return replace(_entry(folder), name=name)
    except (HeadstartError, OSError, KeyError, IndexError):
        created = datetime.datetime.fromtimestamp((folder / RECIPE_FILE).stat().st_mtime)
        return RunEntry(folder, name, "broken", None, None, None, "", "", 0, 0.0, created)


def _entry(folder: Path) -> RunEntry:
    recipe = build_recipe(folder / RECIPE_FILE)
    data = read_json(folder / DATA_FILE)
    scores = read_json(folder / SCORES_FILE) if (folder / SCORES_FILE).exists() else {}
    seconds, reason = 0.0, None
    for record in read_log(folder):
        if isinstance(record, StepRecord):
            seconds += record.seconds
        reason = record.reason if isinstance(record, StopRecord) else None
    statuses = {None: "unfinished", "non_finite": "failed", "requested": "stopped"}
    status = "done" if scores else statuses.get(reason, "unfinished")
    split = next((name for name in ("test", "validation") if scores.get(name)), None)
    score_name = next(iter(scores[split])) if split is not None else None
    return RunEntry(
        run_dir=folder,
        name=folder.name,
        status=status,
        score_name=score_name,
        score=scores[split][score_name] if split is not None and score_name is not None else None,
        split=split,
        model=recipe.model.checkpoint or "all-MiniLM-L6-v2",
        task=recipe.task.name or "",
        rows=data["splits"]["train"]["rows"],
        seconds=seconds,
        created=datetime.datetime.fromtimestamp((folder / DATA_FILE).stat().st_mtime),
    )
