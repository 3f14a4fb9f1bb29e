"""What a run must not change on the way: refused with the difference shown, or allowed by name and logged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import headstart
from headstart import run_identity
from headstart.api import RunIsFinished, prepare
from headstart.cli.main import main
from headstart.errors import CheckpointError, RecipeError
from headstart.run_identity import CHANGEABLE
from headstart.runlog import WarningRecord, read_log
from small_training import Settings, bits_of, finish, start, train_to

Change = Callable[[Path, Path, Path, pytest.MonkeyPatch], None]


def change_data(rows: Path, model: Path, run: Path, patch: pytest.MonkeyPatch) -> None:
    rows.write_text(rows.read_text().replace("the film was good", "the film was fine", 1))


def change_tokenizer(rows: Path, model: Path, run: Path, patch: pytest.MonkeyPatch) -> None:
    path = model / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["film"], vocabulary["plot"] = vocabulary["plot"], vocabulary["film"]
    path.write_text(json.dumps(content))


def change_model(rows: Path, model: Path, run: Path, patch: pytest.MonkeyPatch) -> None:
    path = model / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "hidden_dropout_prob": 0.3}))


def change_recipe(rows: Path, model: Path, run: Path, patch: pytest.MonkeyPatch) -> None:
    path = run / "recipe.yaml"
    path.write_text(path.read_text().replace("schedule: linear", "schedule: cosine"))


def change_versions(rows: Path, model: Path, run: Path, patch: pytest.MonkeyPatch) -> None:
    versions = run_identity.library_versions()
    patch.setattr(run_identity, "library_versions", lambda: {**versions, "torch": "9.9.9"})


CHANGES: dict[str, tuple[Change, str]] = {
    "data": (change_data, r"data: train was \w+\.\.\., is \w+\.\.\."),
    "tokenizer": (change_tokenizer, r"tokenizer: content was \w+\.\.\., is \w+\.\.\."),
    "model": (change_model, r"model: configuration was \w+\.\.\., is \w+\.\.\."),
    "recipe": (change_recipe, "recipe: optim.schedule was linear, is cosine"),
    "versions": (change_versions, r"versions: torch was 2\.\S+, is 9\.9\.9"),
}


@pytest.fixture
def own(settings: Settings, tmp_path: Path) -> Settings:
    """Give the settings over copies of rows and model that a test may change."""
    rows, model = tmp_path / "reviews.csv", tmp_path / "model"
    shutil.copy(settings["data.train"], rows)
    shutil.copytree(settings["model.checkpoint"], model)
    return {**settings, "data.train": str(rows), "model.checkpoint": str(model)}


def stop_at(step: int, settings: Settings, run: Path) -> None:
    for _ in train_to(start(settings, run), step):
        pass


@pytest.mark.parametrize("part", list(CHANGES))
def test_a_change_is_refused_with_the_difference_or_allowed_and_logged(
    part: str, own: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    stop_at(7, own, run)
    change, sentence = CHANGES[part]
    change(tmp_path / "reviews.csv", tmp_path / "model", run, monkeypatch)
    before = (run / "log.jsonl").read_bytes()
    others = [name for name in CHANGEABLE if name != part]
    for allowed in ([], others):
        preparation = prepare(values={"output.run": str(run)}, resume=True, allow=allowed)
        with pytest.raises(CheckpointError, match=sentence) as refused:
            list(preparation.train())
        assert f"--allow {part}" in refused.value.fix
        assert (run / "log.jsonl").read_bytes() == before
    preparation = prepare(values={"output.run": str(run)}, resume=True, allow=[part])
    for _ in preparation.train():
        pass
    preparation.finish()
    changed = [record for record in read_log(run) if isinstance(record, WarningRecord) and record.kind == "changed"]
    assert len(changed) == 1 and changed[0].step == 7
    assert len([line for line in bits_of(run)["log"] if line["record"] == "step"]) == 24


def test_what_was_allowed_once_is_part_of_the_run_from_there(
    own: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resume after the next checkpoint needs no permission, and the best checkpoint from before may be chosen."""
    run = tmp_path / "run"
    stop_at(7, own, run)
    change_versions(tmp_path, tmp_path, run, monkeypatch)
    preparation = prepare(values={"output.run": str(run)}, resume=True, allow=["versions"])
    for _ in train_to(preparation, 9):
        pass
    finish(own, run, resume=True)


def test_settings_given_on_the_way_are_taken_where_the_recipe_may_change(own: Settings, tmp_path: Path) -> None:
    run = tmp_path / "run"
    stop_at(7, own, run)
    with pytest.raises(RecipeError, match=r"train\.epochs: 3\.0 in the run, 4\.0 given now"):
        prepare(values={"output.run": str(run), "train.epochs": 4}, resume=True)
    preparation = prepare(values={"output.run": str(run), "train.epochs": 4}, resume=True, allow=["recipe"])
    for _ in preparation.train():
        pass
    preparation.finish()
    assert len([line for line in bits_of(run)["log"] if line["record"] == "step"]) == 32
    assert headstart.load(run).recipe.train.epochs == 4
    messages = [record.message for record in read_log(run) if isinstance(record, WarningRecord)]
    assert messages == [
        "changed on the way, as allowed: recipe: train.epochs was 3.0, is 4.0",
        "total_steps was 24 when the recipe was written, and is 32 here",
        "warmup_steps was 1 when the recipe was written, and is 2 here",
    ]


def test_settings_that_change_nothing_are_free(own: Settings, tmp_path: Path, whole_run: Callable[[], object]) -> None:
    run = tmp_path / "run"
    stop_at(7, own, run)
    preparation = prepare(values={"output.run": str(run), "train.process_timeout": "1 minute"}, resume=True)
    for _ in preparation.train():
        pass
    preparation.finish()
    assert bits_of(run) == whole_run()


def test_a_run_of_which_nothing_was_saved_begins_anew_and_says_so(
    own: Settings, tmp_path: Path, whole_run: Callable[[], object]
) -> None:
    run = tmp_path / "run"
    for record in start(own, run).train():
        if getattr(record, "step", 0) == 2:
            break
    assert finish(own, run, resume=True) == whole_run()
    first = next(read_log(run))
    assert isinstance(first, WarningRecord) and "the training begins anew" in first.message
    assert (run / "log.discarded.jsonl").exists()


def test_a_finished_run_says_so_and_ends_well(
    own: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    finish(own, run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    (tmp_path / "reviews.csv").unlink()  # not needed any more
    assert main(["train", "--resume", "--run", str(run)]) == 0
    assert "is finished: nothing is left to do" in capsys.readouterr().out
    assert main(["train", "--resume", "--run", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["scores"] == headstart.load(run).scores
    assert headstart.finetune(run=run, resume=True, progress=False).scores == headstart.load(run).scores
    with pytest.raises(RunIsFinished):
        start(own, run, resume=True)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_name_that_is_nothing_is_refused_with_the_nearest(
    own: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    stop_at(7, own, run)
    assert main(["train", "--resume", "--run", str(run), "--allow", "version"]) == 2
    assert 'Did you mean "versions"?' in capsys.readouterr().err
    assert main(["train", own["data.train"], "--allow", "versions"]) == 2
    assert "--allow has no effect without --resume" in capsys.readouterr().err
