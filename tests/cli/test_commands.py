"""The commands, run in this process on a tiny model."""

import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from headstart.cli.look import find_run
from headstart.cli.main import main

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """A folder with a file of rows, and two finished runs: one of texts, one of pairs."""
    folder = tmp_path_factory.mktemp("workplace")
    words = {"good": ["good", "great", "fine"], "bad": ["bad", "dull", "weak"]}
    rows = [f"the film was {words[label][index % 3]} {index},{label}" for index in range(60) for label in words]
    (folder / "reviews.csv").write_text("text,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    pairs = [f"a film {index},a {'film' if index % 2 else 'house'} {index},{index % 2}" for index in range(60)]
    (folder / "pairs.csv").write_text("sentence1,sentence2,label\n" + "\n".join(pairs) + "\n", encoding="utf-8")
    before = Path.cwd()
    os.chdir(folder)
    try:
        for name in ("reviews", "pairs"):
            words_ = ["train", f"{name}.csv", "--model", str(tiny_model_dir), "--epochs", "1", "--quiet"]
            assert main(words_) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def here(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(workplace)
    return workplace


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    def give(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))

    return give


def test_train_shows_the_plan_and_the_result(
    here: Path, tmp_path: Path, tiny_model_dir: Path, capsys: Captured
) -> None:
    run = str(tmp_path / "run")
    assert main(["train", "reviews.csv", "--model", str(tiny_model_dir), "--run", run, "--debug"]) == 0
    shown = capsys.readouterr().out
    for part in (
        "The plan",
        "the column name is usual for text",
        "new, starting at random",
        "majority",
        "tfidf_logistic",
    ):
        assert part in shown
    assert "step 4" in shown


def test_json_is_alone_on_standard_output(here: Path, tmp_path: Path, tiny_model_dir: Path, capsys: Captured) -> None:
    words = [
        "train",
        "reviews.csv",
        "--model",
        str(tiny_model_dir),
        "--run",
        str(tmp_path / "run"),
        "--debug",
        "--json",
    ]
    assert main(words) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert set(result) == {"run_dir", "seconds", "scores"}
    assert "The plan" in captured.err


def test_flags_and_set_reach_the_recipe(here: Path, tmp_path: Path, tiny_model_dir: Path) -> None:
    from headstart.recipe import build_recipe

    words = [
        "train", "reviews.csv", "--model", str(tiny_model_dir), "--run", str(tmp_path / "run"), "--quiet",
        "--epochs", "0.5", "--batch-size", "8", "--learning-rate", "3e-3", "--max-length", "20", "--seed", "5",
        "--limit", "50%", "--test", "reviews.csv[:10]", "--text", "text", "--label", "label",
        "--task", "sequence_classification", "--set", "optim.schedule=cosine", "--set", "train.accumulation=2",
    ]  # fmt: skip
    assert main(words) == 0
    recipe = build_recipe(tmp_path / "run" / "recipe.yaml")
    assert (recipe.train.epochs, recipe.train.batch_size, recipe.train.seed) == (0.5, 8, 5)
    assert (recipe.optim.learning_rate, recipe.optim.schedule, recipe.train.accumulation) == (3e-3, "cosine", 2)
    assert (recipe.data.limit, recipe.data.max_length) == ("50%", 20)
    assert recipe.data.test == f"{here / 'reviews.csv'}[:10]"
    data = json.loads((tmp_path / "run" / "data.json").read_text())
    assert data["splits"]["test"]["rows"] == 10


def test_predict_writes_tab_separated_lines_into_a_pipe(here: Path, capsys: Captured) -> None:
    assert main(["predict", "reviews-1", "the film was good", "the film was bad"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "text\tprediction\tprobability"
    assert [line.split("\t")[0] for line in lines[1:]] == ["the film was good", "the film was bad"]


def test_predict_reads_a_pipe(here: Path, pipe: Callable[[bytes], None], capsys: Captured) -> None:
    pipe("a fine film\nein schöner Film\n".encode())
    assert main(["predict", "runs/reviews-1"]) == 0
    assert [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()[1:]] == [
        "a fine film",
        "ein schöner Film",
    ]


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "json", "parquet", "csv.gz", "jsonl.gz"])
def test_predicted_files_keep_rows_and_columns(here: Path, tmp_path: Path, ending: str, capsys: Captured) -> None:
    from headstart.data.sources import read_source

    output = tmp_path / f"predicted.{ending}"
    assert main(["predict", "reviews-1", "--file", "reviews.csv", "--output", str(output)]) == 0
    table = next(iter(read_source(output).splits.values()))
    assert table.column_names == ["text", "label", "prediction", "probability"]
    original = next(iter(read_source("reviews.csv").splits.values()))
    assert table["text"][:] == original["text"][:]
    assert [path.name for path in tmp_path.iterdir()] == [output.name]


def test_a_taken_column_name_is_said(here: Path, tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "in.csv").write_text("text,prediction\na film,mine\n")
    assert (
        main(["predict", "reviews-1", "--file", str(tmp_path / "in.csv"), "--output", str(tmp_path / "o.parquet")]) == 0
    )
    assert pq.read_table(tmp_path / "o.parquet").column_names == [
        "text",
        "prediction",
        "model_prediction",
        "probability",
    ]
    assert 'the new one is called "model_prediction"' in capsys.readouterr().err


def test_a_pipe_is_cut_at_line_ends_only(here: Path, tmp_path: Path, pipe: Callable[[bytes], None]) -> None:
    texts = ["one\x0cform feed", "two\u2028parts", "", "last"]
    pipe("\ufeff".encode() + "\r\n".join(texts).encode())
    output = tmp_path / "o.jsonl"
    assert main(["predict", "reviews-1", "--output", str(output)]) == 0
    assert [json.loads(line)["text"] for line in output.read_text("utf-8").split("\n")[:-1]] == texts


@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_a_number_that_is_not_finite_is_null_in_json(here: Path, tmp_path: Path, ending: str) -> None:
    import pyarrow as pa

    source, output = tmp_path / "in.parquet", tmp_path / f"o.{ending}"
    pq.write_table(pa.table({"text": ["a film", "b"], "stars": [float("nan"), 2.5]}), source)
    assert main(["predict", "reviews-1", "--file", str(source), "--output", str(output)]) == 0
    assert "NaN" not in output.read_text()
    assert "2.5" in output.read_text() and "null" in output.read_text()


def test_a_table_is_shown_on_a_terminal(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["predict", "reviews-1", "the film was good", "an \x1b[31mescape\nin it"]) == 0
    assert isinstance(sys.stdout, Terminal)
    shown = sys.stdout.getvalue()
    assert "the film was good" in shown and "prediction" in shown
    assert "\\x1b[31mescape\\nin it" in shown


def test_a_folder_without_runs_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["runs"]) == 0
    assert "no runs here yet" in capsys.readouterr().out


def test_a_name_in_runs_is_found_beside_a_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "films").mkdir()
    (tmp_path / "runs" / "films").mkdir(parents=True)
    (tmp_path / "runs" / "films" / "recipe.yaml").write_text("")
    assert find_run("films") == Path("runs/films")
    assert find_run(str(tmp_path / "films")) == tmp_path / "films"


def test_pairs_come_in_twos(here: Path, pipe: Callable[[bytes], None], capsys: Captured) -> None:
    assert main(["predict", "pairs-1", "a film", "a house"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "sentence1\tsentence2\tprediction\tprobability"
    assert main(["predict", "pairs-1", "a film"]) == 2
    assert "in twos" in capsys.readouterr().err
    pipe(b"a film\ta house\n")
    assert main(["predict", "pairs-1"]) == 0
    pipe(b"a film\n")
    assert main(["predict", "pairs-1"]) == 2
    assert "exactly one tab" in capsys.readouterr().err


def test_evaluate_runs_and_show(here: Path, capsys: Captured) -> None:
    assert main(["evaluate", "reviews-1", "reviews.csv[:20]", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)["scores"]
    assert scores["accuracy"]["low"] <= scores["accuracy"]["value"] <= scores["accuracy"]["high"]
    assert main(["evaluate", "reviews-1", "reviews.csv"]) == 0
    assert "accuracy" in capsys.readouterr().out
    assert main(["runs"]) == 0
    assert {"reviews-1", "pairs-1"} <= set(capsys.readouterr().out.split())
    assert main(["show", "reviews-1"]) == 0
    assert "sequence_classification" in capsys.readouterr().out


def test_show_of_a_source_passes_its_options_on(
    here: Path, tmp_path: Path, tiny_model_dir: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ["--model", str(tiny_model_dir)]
    assert main(["show", "reviews.csv", *model]) == 0
    shown = capsys.readouterr().out
    for part in ("120", "the column name is usual for text", "2 classes", "tokens", "headstart train reviews.csv"):
        assert part in shown
    assert main(["show", "pairs.csv", "--text", "sentence2", "--pair", "sentence1", "--label", "label", *model]) == 0
    shown = capsys.readouterr().out
    assert shown.count("named by you") == 3 and "--text sentence2 --pair sentence1 --label label" in shown
    words = ["--test", "reviews.csv[:6]", "--validation", "reviews.csv[:4]", "--examples", "1", "--seed", "5", *model]
    assert main(["show", "reviews.csv", *words]) == 0
    shown = capsys.readouterr().out
    assert "4 rows with a text of train" in shown and "6 rows with a text of train" in shown
    assert shown.count("drawn, row") == 1 and tiny_model_dir.name in shown.replace("\n", "").replace(" ", "")
    words[words.index("5")] = "6"
    assert main(["show", "reviews.csv", *words]) == 0
    assert capsys.readouterr().out != shown
    assert main(["show", "reviews.csv", "--examples", "0", *model]) == 0
    assert "the film was" not in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    assert main(["show", str(here / "reviews.csv"), *model, "--html"]) == 0
    assert capsys.readouterr().out == "Written: reviews.html\n"
    assert main(["show", str(here / "reviews.csv"), *model, "--html", "other.html"]) == 0
    assert Path("reviews.html").read_text(encoding="utf-8") == Path("other.html").read_text(encoding="utf-8")


def test_show_tells_runs_and_sources_apart(here: Path, tmp_path: Path, capsys: Captured) -> None:
    assert main(["show", "runs/reviews-1"]) == 0
    assert "The run: reviews-1" in capsys.readouterr().out
    folder = here / "pairs-1"  # rows under the name of a run
    folder.mkdir()
    try:
        (folder / "train.csv").write_text("text,label\na,0\nb,1\n", encoding="utf-8")
        assert main(["show", "pairs-1"]) == 0
        said = capsys.readouterr()
        assert "The run: pairs-1" in said.out and "headstart show ./pairs-1" in said.err
        assert main(["show", "./pairs-1"]) == 0
        assert "The data: pairs-1" in capsys.readouterr().out
    finally:
        (folder / "train.csv").unlink()
        folder.rmdir()


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["train", "reviws.csv"], 'Did you mean "reviews.csv"'),
        (["train"], "No training source is named"),
        (["train", "reviews.csv", "--label", "lable"], 'Set data.columns.label = "label"'),
        (["train", "reviews.csv", "--label", "text", "--text", "text"], "text"),
        (["train", "reviews.csv", "--learning-rate", "-1"], "more than 0"),
        (["train", "reviews.csv", "--batch-size", "0"], "at least 1"),
        (["train", "reviews.csv", "--task", "ner"], "task.name: 'ner' is unknown"),
        (["train", "reviews.csv", "--set", "train.epohcs=3"], 'Did you mean "epochs"'),
        (["train", "reviews.csv", "--epochs", "2", "--set", "train.epochs=3"], "Keep one"),
        (["train", "reviews.csv", "--model", "./nowhere"], "no such model folder"),
        (["train", "reviews.csv", "--recipe", "gone.yaml"], "gone.yaml"),
        (["train", "reviews.csv", "--run", "runs/reviews-1"], "exists and is not empty"),
        (["train", "--resume"], "which run goes on"),
        (["train", "--resume", "--run", "runs/nothing"], "no run to resume"),
        (["train", "--resume", "--debug", "--run", "runs/reviews-1"], "both given"),
        (["predict", "reviws-1", "a film"], "no run"),
        (["predict", "reviews-1", "a film", "--output", "x.xls"], "unknown"),
        (["predict", "reviews-1", "a film", "--file", "reviews.csv"], "both given"),
        (["predict", "reviews-1", "a film", "--text", "text"], "no --file"),
        (["predict", "reviews-1", "--file", "reviews.csv", "--text", "txt"], 'Did you mean "text"'),
        (["evaluate", "reviews-1", "pairs.csv"], "training"),
        (["predict", "reviews-1", "--file", "reviews.csv", "--output", "reviews.csv"], "the file that is read"),
        (["show", "nothing"], "no run"),
        (["show", "reviws-1"], 'Did you mean "reviews-1"'),
        (["show", "reviws.csv"], 'Did you mean "reviews.csv"'),
        (["show", "runs"], "headstart runs runs"),
        (["show", "reviews-1", "--label", "label", "--html"], "--label and --html have no effect"),
        (["show", "reviews.csv", "--label", "lable"], '"label"'),
        (["show", "reviews.csv", "--examples", "-1"], "0 or more"),
        (["show", "reviews.csv", "--examples", "many"], "a whole number"),
        (["show", "reviews.csv", "--html", "reviews.csv"], "ends in .html"),
        (["show", "--html", "reviews.csv"], "SOURCE is missing"),
        (["show", "reviews.csv", "--model", "./nowhere"], "no such model folder"),
        (["runs", "nowhere"], "no such folder"),
    ],
)
def test_a_mistake_ends_with_two_and_says_what_to_do(here: Path, words: list[str], part: str, capsys: Captured) -> None:
    before = sorted(Path("runs").iterdir())
    assert main(words) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert part in error and "Traceback" not in error
    assert sorted(Path("runs").iterdir()) == before


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "empty"),
        (b"text,label\n", "no row"),
        (b"text,label\na,good\nb\xff,bad\n", "UTF-8"),
        (b"text,label\na,good\nb,bad,more\n", "row 3: 3 cells"),
        (b"text,label\na,good\nb,good\n", "class"),
        (b"text,words\na,\nb,\n", "label"),
    ],
)
def test_a_broken_file_is_explained(tmp_path: Path, content: bytes, part: str, capsys: Captured) -> None:
    (tmp_path / "broken.csv").write_bytes(content)
    assert main(["train", str(tmp_path / "broken.csv"), "--yes"]) == 2
    assert part in capsys.readouterr().err


def test_a_fault_of_ours_is_told_apart(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    import headstart.display.runs

    def fail(run_dir: Path) -> Any:
        raise ZeroDivisionError("made up")

    monkeypatch.setattr(headstart.display.runs, "show_run", fail)
    assert main(["show", "reviews-1"]) == 1
    error = capsys.readouterr().err
    assert "a fault of headstart: ZeroDivisionError: made up" in error and "Traceback" not in error
    assert main(["show", "reviews-1", "--traceback"]) == 1
    error = capsys.readouterr().err
    assert "Traceback" in error and "ZeroDivisionError: made up" in error


def test_a_question_that_is_declined_writes_nothing(
    here: Path, tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    monkeypatch.setattr(sys, "stdout", Terminal())
    run = tmp_path / "run"
    assert main(["train", "reviews.csv", "--model", str(tiny_model_dir), "--run", str(run)]) == 0
    assert not run.exists()
    monkeypatch.setattr(sys, "stdin", Terminal(""))
    words = ["train", "reviews.csv", "--model", str(tiny_model_dir), "--run", str(run), "--debug", "--yes"]
    assert main(words) == 0
    assert run.exists()


def test_what_is_cut_is_said_on_standard_error(here: Path, tmp_path: Path, capsys: Captured) -> None:
    long = "the film " * 100
    source = tmp_path / "long.csv"
    source.write_text(f"text,label\na film,good\n{long},bad\n", encoding="utf-8")
    for words in (
        ["predict", "reviews-1", "a film", long],
        ["predict", "reviews-1", "--file", str(source)],
        ["evaluate", "reviews-1", str(source), "--json"],
    ):
        assert main(words) == 0
        captured = capsys.readouterr()
        assert captured.err.splitlines()[0] == (
            "1 of 2 rows are longer than the limit of 128 tokens and are cut, losing 74 tokens"
        )
        assert "longer than" not in captured.out
