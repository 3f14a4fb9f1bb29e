"""Searches: what is tried, what is pruned, who takes part, and the way back after a stop."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import headstart
from headstart.cli.main import main
from headstart.display.tuning import draw_trials
from headstart.errors import CheckpointError, HeadstartError, RecipeError
from headstart.recipe import build_recipe
from headstart.records import CheckpointRecord, StepRecord
from headstart.run import Run
from headstart.search_space import default_space, read_setting, setting_from
from headstart.tuning import TrialLine, Tuning, TuningTrial
from headstart.tuning_search import prepare_tuning, tune
from small_training import write_reviews

pytest.importorskip("optuna")

FAST = {
    "train.epochs": 1,
    "train.batch_size": 8,
    "optim.learning_rate": 3e-3,
    "train.precision": "fp32",
    "train.fast": False,
    "train.threads": 1,
    "evaluate.baselines": False,
}
RATES = {"optim.learning_rate": (1e-3, 1e-2)}


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return write_reviews(tmp_path / "reviews.csv", 90), write_reviews(tmp_path / "test.csv", 20)


def begin(files: tuple[Path, Path], folder: Path, model: Path, **options: Any) -> Tuning:
    space = [setting_from(key, tried) for key, tried in options.pop("space", RATES).items()]
    values = {"output.run": str(folder), "data.test": str(files[1]), "model.checkpoint": str(model), **FAST}
    values = {key: value for key, value in values.items() if key not in {setting.key for setting in space}}
    return prepare_tuning(files[0], space=space, values=values, **options).start()


def steps_of(trial: TuningTrial) -> Iterator[StepRecord]:
    for record in trial.train():
        if isinstance(record, StepRecord):
            yield record


def carry_out(tuning: Tuning) -> Run:
    while (trial := tuning.next_trial()) is not None:
        list(trial.train())
        trial.close()
    return tuning.finish()


def test_trials_train_what_they_say_and_the_best_is_an_ordinary_run(
    files: tuple[Path, Path], tiny_model_dir: Path, tmp_path: Path
) -> None:
    space = {"optim.learning_rate": (1e-3, 1e-2), "train.batch_size": [4, 8], "optim.warmup": [0, "10%"]}
    tuning = begin(files, tmp_path / "found", tiny_model_dir, space=space, trials=5)
    best = carry_out(tuning)
    trials = tuning.trials
    assert [trial.number for trial in trials] == [0, 1, 2, 3, 4] and tuning.is_finished
    for trial in trials:
        recipe = build_recipe(tuning.folder_of(trial.number) / "recipe.yaml")
        assert (recipe.optim.learning_rate, recipe.train.batch_size, recipe.optim.warmup) == (
            trial.values["optim.learning_rate"],
            trial.values["train.batch_size"],
            trial.values["optim.warmup"],
        )
        assert 1e-3 <= trial.values["optim.learning_rate"] <= 1e-2
    assert len({trial.values["optim.learning_rate"] for trial in trials}) > 3
    done = [trial for trial in trials if trial.state == "done"]
    assert best.run_dir == tuning.folder_of(max(done, key=lambda trial: (trial.score, -trial.number)).number)
    assert best.predict(["the film was good"])[0].probability is not None
    table = json.loads((tuning.tuning_dir / "trials.json").read_text(encoding="utf-8"))
    assert table["best"] == tuning.best_trial.number and len(table["trials"]) == 5


def test_no_trial_reads_the_test_rows_and_the_best_is_scored_on_them_once(
    files: tuple[Path, Path], tiny_model_dir: Path, tmp_path: Path
) -> None:
    tuning = begin(files, tmp_path / "found", tiny_model_dir, trials=3)
    best = carry_out(tuning)
    scored = [trial.number for trial in tuning.trials if (tuning.folder_of(trial.number) / "scores.json").exists()]
    assert scored == [tuning.best_trial.number]
    assert set(best.scores) >= {"validation", "test"}
    assert best.scores["validation"][tuning.score_name]["value"] == pytest.approx(tuning.best_trial.score)
    kept = [trial.number for trial in tuning.trials if (tuning.folder_of(trial.number) / "checkpoints").exists()]
    assert kept == scored


def test_the_first_trial_has_the_recipe_s_own_values_and_the_best_recipe_the_best(
    files: tuple[Path, Path], tiny_model_dir: Path, tmp_path: Path
) -> None:
    settings = ["optim.learning_rate=0.002", "train.evaluate_every=1 epoch", "train.patience=3"]
    values = {"output.run": str(tmp_path / "found"), "model.checkpoint": str(tiny_model_dir), **FAST}
    del values["optim.learning_rate"], values["train.batch_size"]
    planned = prepare_tuning(files[0], trials=2, settings=settings, values=values)
    assert [setting.key for setting in planned.space] == ["train.batch_size", "optim.warmup"]
    tuning = planned.start()
    trial = tuning.next_trial()
    assert trial is not None and trial.number == 0
    assert trial.values == {"train.batch_size": 32, "optim.warmup": 0}
    assert trial.plan.recipe.train.evaluate_every == "25%" and trial.plan.recipe.train.patience is None
    list(trial.train())
    trial.close()
    carry_out(tuning)
    recipe = build_recipe(tmp_path / "found" / "best.yaml")
    assert (recipe.train.evaluate_every, recipe.train.patience) == ("1 epoch", 3)
    assert recipe.train.batch_size == tuning.best_trial.values["train.batch_size"] and recipe.output.run is None
    assert recipe.optim.learning_rate == 0.002


@pytest.mark.parametrize("where", ["setting", "file"])
def test_the_folder_may_be_named_in_a_setting_or_a_recipe(
    where: str, files: tuple[Path, Path], tiny_model_dir: Path, tmp_path: Path
) -> None:
    values = {"model.checkpoint": str(tiny_model_dir), **FAST, "data.train": str(files[0])}
    del values["optim.learning_rate"]
    space = [setting_from("optim.learning_rate", (1e-3, 1e-2))]
    folder, recipe = tmp_path / "found", tmp_path / "recipe.yaml"
    recipe.write_text(f"output:\n  run: {folder}\n", encoding="utf-8")
    named: dict[str, Any] = {"recipe_file": recipe} if where == "file" else {"settings": [f"output.run={folder}"]}
    tuning = prepare_tuning(space=space, trials=2, values=values, **named).start()
    trial = tuning.next_trial()
    assert tuning.tuning_dir == folder and trial is not None
    list(trial.train())
    trial.close()
    assert (folder / "trial-0" / "recipe.yaml").exists()
    with pytest.raises(CheckpointError, match="a new folder for a new search"):
        prepare_tuning(space=space, trials=2, values=values, **named)


def test_a_pruned_trial_ends_early_and_is_never_the_best(
    files: tuple[Path, Path], tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import optuna

    monkeypatch.setattr(optuna.trial.Trial, "should_prune", lambda self: self.number > 0)
    tuning = begin(files, tmp_path / "found", tiny_model_dir, trials=3)
    best = carry_out(tuning)
    assert [trial.state for trial in tuning.trials] == ["done", "pruned", "pruned"]
    assert best.run_dir == tuning.folder_of(0)
    whole = build_recipe(tuning.folder_of(0) / "recipe.yaml")
    for number in (1, 2):
        log = [json.loads(line) for line in (tuning.folder_of(number) / "log.jsonl").read_text().splitlines()]
        steps = [record["step"] for record in log if record["record"] == "step"]
        assert whole and max(steps) <= 4, steps  # of 11: after the first evaluation
        assert not (tuning.folder_of(number) / "checkpoints").exists()


def test_the_median_pruner_compares_trials_at_the_same_share_of_their_steps(
    files: tuple[Path, Path], tiny_model_dir: Path, tmp_path: Path
) -> None:
    tuning = begin(files, tmp_path / "found", tiny_model_dir, space={"train.epochs": [1, 2]}, trials=2)
    carry_out(tuning)
    for trial in tuning.study.trials:
        assert sorted(trial.intermediate_values) == [25, 50, 75, 100]  # evaluations of 11 steps are at 3, 6, 9 and 11


def test_what_matters_is_a_share_of_the_scores_variance(
    files: tuple[Path, Path], tiny_model_dir: Path, tmp_path: Path
) -> None:
    space = {"optim.learning_rate": (1e-3, 1e-2), "optim.warmup": [0, 2]}
    tuning = begin(files, tmp_path / "found", tiny_model_dir, space=space, trials=12)
    assert tuning.importances() == {}
    for _ in range(12):
        trial = tuning.study.ask()
        values = {setting.key: setting.suggest(trial) for setting in tuning.space}
        tuning.study.tell(trial, values["optim.learning_rate"] * 100)
    found = tuning.importances()
    assert next(iter(found)) == "optim.learning_rate" and found["optim.learning_rate"] > 0.8
    assert sum(found.values()) == pytest.approx(1)


def test_a_loss_that_is_not_finite_costs_one_trial(
    files: tuple[Path, Path], tiny_model_dir: Path, tmp_path: Path
) -> None:
    space = {"optim.learning_rate": [1e-3, 1e30]}
    tuning = begin(files, tmp_path / "found", tiny_model_dir, space=space, trials=4)
    tuning.study.enqueue_trial({"optim.learning_rate": "1.0e+30"})
    best = carry_out(tuning)
    states = {trial.values["optim.learning_rate"]: trial.state for trial in tuning.trials}
    assert states[1e30] == "failed" and states[1e-3] == "done"
    assert build_recipe(best.run_dir / "recipe.yaml").optim.learning_rate == 1e-3


def test_no_trial_that_ends_is_an_error_that_says_so(
    files: tuple[Path, Path], tiny_model_dir: Path, tmp_path: Path
) -> None:
    tuning = begin(files, tmp_path / "found", tiny_model_dir, space={"optim.learning_rate": [1e30, 1e31]}, trials=2)
    with pytest.raises(CheckpointError, match="no trial came to its end"):
        carry_out(tuning)


@pytest.mark.parametrize("at_checkpoint", [0, 1])
def test_a_trial_that_was_left_goes_on_where_it_was(
    at_checkpoint: int, files: tuple[Path, Path], tiny_model_dir: Path, tmp_path: Path
) -> None:
    alone = begin(files, tmp_path / "alone", tiny_model_dir, trials=2)
    trial = alone.next_trial()
    assert trial is not None
    expected = [record.loss for record in steps_of(trial)]
    trial.close()

    left = begin(files, tmp_path / "left", tiny_model_dir, trials=2).next_trial()
    assert left is not None
    records = left.train()
    seen: list[StepRecord] = []
    checkpoints = 0
    for record in records:
        seen += [record] if isinstance(record, StepRecord) else []
        checkpoints += isinstance(record, CheckpointRecord)
        if checkpoints > at_checkpoint:
            break
    records.close()
    left.close()

    again = Tuning(tmp_path / "left")
    taken = again.next_trial()
    assert taken is not None and taken.number == 0 and taken.values == left.values
    rest = [record.loss for record in steps_of(taken)]
    taken.close()
    assert len(rest) < len(expected) and [record.loss for record in seen] + rest == expected
    assert [each.state for each in again.trials] == ["done"]
    assert again.trials[0].score == alone.trials[0].score


def test_a_trial_that_was_asked_for_and_never_begun_is_taken_up(
    files: tuple[Path, Path], tiny_model_dir: Path, tmp_path: Path
) -> None:
    tuning = begin(files, tmp_path / "found", tiny_model_dir, trials=2)
    tuning.study.ask()  # and killed
    trial = tuning.next_trial()
    assert trial is not None and trial.number == 0 and set(trial.values) == set(RATES)
    trial.close()


def test_a_trial_that_another_process_is_at_is_left_to_it(
    files: tuple[Path, Path], tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuning = begin(files, tmp_path / "found", tiny_model_dir, trials=2)
    first = tuning.next_trial()
    other = Tuning(tmp_path / "found")  # locks hold within a process, too
    second = other.next_trial()
    assert first is not None and second is not None and (first.number, second.number) == (0, 1)
    assert first.values != second.values
    list(second.train())
    second.close()
    said: list[str] = []

    def end_the_first(seconds: float) -> None:
        list(first.train())
        first.close()

    monkeypatch.setattr("headstart.tuning.time.sleep", end_the_first)
    assert other.next_trial(progress=lambda text, done, total: said.append(text)) is None
    assert "waiting for what other processes train: trial 0" in said
    assert [trial.state for trial in other.trials] == ["done", "done"]


def test_the_first_of_two_processes_ends_the_search(
    files: tuple[Path, Path], tiny_model_dir: Path, tmp_path: Path
) -> None:
    tuning = begin(files, tmp_path / "found", tiny_model_dir, trials=2)
    best = carry_out(tuning)
    before = (best.run_dir / "scores.json").stat().st_mtime_ns
    assert Tuning(tmp_path / "found").finish().run_dir == best.run_dir
    assert (best.run_dir / "scores.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_two_processes_share_the_trials(files: tuple[Path, Path], tiny_model_dir: Path, tmp_path: Path) -> None:
    own = {key: value for key, value in FAST.items() if key not in ("optim.learning_rate", "train.threads")}
    own["train.epochs"] = 12  # the other process takes seconds to start
    settings = [f"{key}={json.dumps(value)}" for key, value in own.items()]
    found = tune(
        str(files[0]),
        trials=5,
        workers=2,
        space=RATES,
        settings=settings,
        model=str(tiny_model_dir),
        run=tmp_path / "found",
        progress=False,
    )
    assert len(found.trials) == 5
    assert {trial.state for trial in found.trials} <= {"done", "pruned"}
    started = [(each.datetime_start, each.datetime_complete) for each in found.study.trials]
    # Two were under way at once.
    assert any(a < d and c < b for i, (a, b) in enumerate(started) for c, d in started[i + 1 :])
    assert found.best.scores["validation"]


@pytest.mark.slow
def test_a_killed_command_goes_on(files: tuple[Path, Path], tiny_model_dir: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "headstart", "tune"]
    own = [word for key, value in FAST.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    folder = str(tmp_path / "found")
    start = [str(files[0]), "--search", "optim.warmup=0,2,3", "--trials", "3", "--model", str(tiny_model_dir)]
    process = subprocess.Popen([*command, *start, *own, "--run", folder, "--quiet"], env={**os.environ})
    begun = tmp_path / "found" / "trial-1" / "log.jsonl"
    end = time.monotonic() + 120
    while not (begun.exists() and '"step"' in begun.read_text(encoding="utf-8")):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = subprocess.run([*command, "--resume", "--run", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [trial.state in ("done", "pruned") for trial in Tuning(folder).trials] == [True] * 3
    assert "The search: found" in done.stdout


def test_the_command_shows_a_table_a_picture_and_what_to_do_next(
    files: tuple[Path, Path], tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fixed = {key: value for key, value in FAST.items() if key != "optim.learning_rate"}
    own = [word for key, value in fixed.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    folder = tmp_path / "runs" / "found"
    words = ["tune", str(files[0]), "--search", "optim.learning_rate=1e-3..1e-2", "--trials", "2", "--yes", *own]
    assert main([*words, "--model", str(tiny_model_dir), "--run", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "2 trials of this plan with other values of" in said
    assert "optim.learning_rate from 0.001 to 0.01, by its logarithm" in said
    assert "The search: found" in said and "flatters" in said
    assert f"headstarttrain--recipe{folder}/best.yaml--seeds5" in "".join(said.split())
    tree = xml.etree.ElementTree.fromstring((folder / "tuning.svg").read_text(encoding="utf-8"))
    assert len(tree.findall("{http://www.w3.org/2000/svg}circle")) == 2

    assert main(["show", str(folder)]) == 0
    assert "The search: found" in capsys.readouterr().out
    assert main(["show", str(folder), "--examples", "2"]) == 2
    assert "is a search" in capsys.readouterr().err
    assert main(["runs", str(tmp_path / "runs")]) == 0
    assert capsys.readouterr().out.count("found/trial-") == 1
    with pytest.raises(CheckpointError, match="is a search of several trials"):
        headstart.load(folder)
    assert main(["tune", "--resume", "--run", str(folder), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["trials"]) == 2 and told["best"] in (0, 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--trials", "1"], "--trials is 1"),
        (["--workers", "0"], "--workers is 0"),
        (["--search", "optim.learning_rate"], "this is no setting with its values"),
        (["--search", "optim.learning_rat=1e-5..1e-3"], 'Did you mean "learning_rate"'),
        (["--search", "optim.learning_rate=1e-3..1e-5"], "is no range"),
        (["--search", "optim.learning_rate=1e-3"], "gives nothing to choose from"),
        (["--search", "train.batch_size=8,x"], "train.batch_size"),
        (["--search", "train.epochs=1,2", "--epochs", "3"], "train.epochs is set to one value, and searched"),
        (["--resume"], "does not say which search"),
        (["--resume", "--run", "nowhere"], "no search"),
        (["--resume", "--run", "nowhere", "--trials", "4"], "given now: --trials"),
        (["--resume", "--run", "nowhere", "--search", "train.epochs=1,2"], "given now: --search"),
        (["--epochs", "1", "--batch-size", "4", "--learning-rate", "1e-3", "--set", "optim.warmup=0"], "one value"),
    ],
)
def test_mistakes_are_said_before_anything_is_written(
    words: list[str],
    message: str,
    files: tuple[Path, Path],
    tiny_model_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    source = [] if "--resume" in words else [str(files[0]), "--model", str(tiny_model_dir)]
    assert main(["tune", *source, "--yes", *words]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "runs").exists()


def test_a_folder_with_something_in_it_is_refused(
    files: tuple[Path, Path], tiny_model_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "found").mkdir()
    (tmp_path / "found" / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        begin(files, tmp_path / "found", tiny_model_dir, trials=2)


def test_without_optuna_the_extra_is_named(
    files: tuple[Path, Path], tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(RecipeError, match=re.escape("headstart[search]")):
        begin(files, tmp_path / "found", tiny_model_dir, trials=2)


def test_rows_in_memory_are_searched_by_one_process(tiny_model_dir: Path, tmp_path: Path) -> None:
    rows = [{"text": f"the film was {'good' if i % 2 else 'bad'}", "label": i % 2} for i in range(40)]
    with pytest.raises(HeadstartError, match="in memory"):
        tune(rows, trials=2, workers=2, model=str(tiny_model_dir), run=tmp_path / "found", progress=False)
    settings = [f"{key}={json.dumps(value)}" for key, value in FAST.items() if key != "optim.learning_rate"]
    found = tune(
        rows,
        trials=2,
        space={"optim.learning_rate": [1e-3, 3e-3]},
        settings=settings,
        model=str(tiny_model_dir),
        run=tmp_path / "found",
        progress=False,
    )
    assert len(found.trials) == 2 and found.best.run_dir.parent == tmp_path / "found"


def test_the_picture_escapes_and_leaves_out_what_has_no_score() -> None:
    trials = [
        TrialLine(0, "done", 0.5, {"model.checkpoint": "<b>&"}, 1.0),
        TrialLine(1, "pruned", 0.25, {"model.checkpoint": "other"}, 1.0),
        TrialLine(2, "failed", None, {"model.checkpoint": "other"}, 1.0),
        TrialLine(3, "failed", float("nan"), {"model.checkpoint": "other"}, 1.0),
    ]
    picture = draw_trials(trials, score_name="accuracy", best=0, importances={})
    circles = xml.etree.ElementTree.fromstring(picture).findall("{http://www.w3.org/2000/svg}circle")
    assert len(circles) == 2 and [circle.get("fill") == "none" for circle in circles] == [False, True]
    assert "&lt;b&gt;&amp;" in picture and picture == draw_trials(trials, score_name="accuracy", best=0, importances={})


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("train.batch_size=8,16", "train.batch_size: 8, 16"),
        ("optim.name=adamw, sgd", "optim.name: adamw, sgd"),
        ("train.epochs=1..4", "train.epochs from 1 to 4"),
        ("optim.weight_decay=0..0.1", "optim.weight_decay from 0 to 0.1"),
        ("optim.learning_rate=1e-5..1e-3", "optim.learning_rate from 1e-05 to 0.001, by its logarithm"),
        ("train.ema=null,0.999", "train.ema: None, 0.999"),
    ],
)
def test_settings_are_read_and_written_back(text: str, shown: str) -> None:
    setting = read_setting(text)
    assert str(setting) == shown and setting_from(setting.key, setting.to_dict()) == setting


def test_the_space_goes_round_the_recipe_s_own_values() -> None:
    recipe = build_recipe(values={"optim.learning_rate": 1e-4, "train.epochs": 1, "train.batch_size": 1})
    space = {setting.key: setting for setting in default_space(recipe, [])}
    assert (space["optim.learning_rate"].low, space["optim.learning_rate"].high) == (2.5e-5, 4e-4)
    assert space["train.batch_size"].choices == (1, 2)
    assert (space["train.epochs"].low, space["train.epochs"].high) == (1, 3)
    plain = build_recipe(values={"optim.learning_rate": 1e-4, "optim.schedule": "constant", "train.max_steps": 5})
    assert [setting.key for setting in default_space(plain, ["train.batch_size"])] == ["optim.learning_rate"]
