"""What a resume takes from the run folder: its recipe, with which everything else that is given must agree.

May import layers 0 to 4, and `run_identity`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from headstart.addresses import mask
from headstart.errors import CheckpointError, RecipeError
from headstart.recipe import Recipe, build_recipe, read_recipe_file
from headstart.run_identity import FREE_SETTINGS, check_allowed
from headstart.runlog import CARD_FILE, RECIPE_FILE, StopRecord, read_log

__all__ = ["RunIsFinished", "check_unfinished", "resumed_recipe"]


class RunIsFinished(Exception):
    """Raised where a run that is to be resumed has nothing left to do.

    Args:
        run_dir: its folder.
        seconds: of its training.
    """

    def __init__(self, run_dir: Path, seconds: float) -> None:
        super().__init__(f"{run_dir} is finished: nothing is left to do.")
        self.run_dir = run_dir
        self.seconds = seconds


def resumed_recipe(
    recipe_file: Path | None, settings: Sequence[str], values: Mapping[str, Any], allow: Sequence[str]
) -> tuple[Recipe, dict[str, Any]]:
    """Take the recipe of the run; whatever else is given must agree with it, unless the recipe may change."""
    check_allowed(allow)
    run = values.get("output.run")
    if run is None:
        raise RecipeError(
            "--resume needs to know which run goes on.", "its folder.", "Run: headstart train --resume --run DIR"
        )
    path = Path(str(run)) / RECIPE_FILE
    if not path.exists():
        raise CheckpointError(
            f"{run}: no run to resume ({RECIPE_FILE} is not there).",
            "the folder of a run that was started.",
            "Check the path given with --run, or leave --resume out to start it.",
        )
    # The folder may have been moved since: where it lies now counts.
    recipe = build_recipe(path).replace({"output.run": str(run)})
    derived = read_recipe_file(path)[1]
    given = {key: value for key, value in values.items() if key != "output.run"}
    changed: dict[str, tuple[Any, Any]] = {}
    revealed: dict[str, Any] = {}
    if given or settings or recipe_file is not None:
        own = recipe.model_dump()
        for key, new in _stated(build_recipe(recipe_file, settings, given), recipe_file, settings, given).items():
            section, _, name = key.partition(".")
            old = own[section][name]
            if name == "columns":
                old = {role: old.get(role) for role in new}
            if isinstance(new, str) and old == mask(new):  # recipe.yaml holds no secrets
                revealed[key] = new
            elif old != new and (key, new) != ("train.order", "auto"):  # the run has found what that is
                changed[key] = (old, new)
    refused = changed.keys() - FREE_SETTINGS if "recipe" not in allow else set()
    if refused:
        lines = [
            f"{key}: {_shown(changed[key][0])} in the run, {_shown(changed[key][1])} given now"
            for key in sorted(refused)
        ]
        raise RecipeError(
            f"{run} was started with other settings:\n- " + "\n- ".join(lines),
            "the settings of the run, which --resume takes from its recipe.yaml.",
            f"Leave these options out (headstart train --resume --run {run}), start a new run, or change them on the "
            "way with --allow recipe.",
        )
    return recipe.replace({**revealed, **{key: new for key, (_, new) in changed.items()}}), derived


def _shown(value: Any) -> str:
    return repr(mask(value) if isinstance(value, str) else value)


def check_unfinished(run_dir: Path) -> None:
    """Raise where training has ended and everything is scored; the model card is what is written last."""
    if not (run_dir / CARD_FILE).exists():
        return
    last = None
    for record in read_log(run_dir):
        last = record
    if isinstance(last, StopRecord) and last.reason in ("done", "early_stopping", "time_limit"):
        raise RunIsFinished(run_dir, last.seconds)


def _stated(
    recipe: Recipe, recipe_file: Path | None, settings: Sequence[str], values: Mapping[str, Any]
) -> dict[str, Any]:
    """List the values of a recipe that somebody stated, as "section.key" to value."""
    keys = {".".join(key.split(".")[:2]) for key in [*values, *(text.partition("=")[0].strip() for text in settings)]}
    if recipe_file is not None:
        keys |= {f"{section}.{key}" for section, fields in read_recipe_file(recipe_file)[0].items() for key in fields}
    data = recipe.model_dump()
    stated = {key: data[key.partition(".")[0]][key.partition(".")[2]] for key in sorted(keys - {"output.run"})}
    return {key: value for key, value in stated.items() if value is not None}
