"""The benchmarks run, count what they say they count, and the pages show what their results hold."""

from __future__ import annotations

import copy
import doctest
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

REPOSITORY = Path(__file__).parent.parent
BENCHMARKS = REPOSITORY / "benchmarks"
SCRIPTS = [path for path in sorted(BENCHMARKS.glob("*.py")) if '__name__ == "__main__"' in path.read_text()]
MISSING_PACKAGE = 2


@pytest.fixture
def benchmark_modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let a test import the scripts, by names that nothing else then finds."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield
    for name in set(sys.modules) - before:
        if (BENCHMARKS / f"{name}.py").exists():
            del sys.modules[name]


@pytest.fixture
def draw(benchmark_modules: None) -> ModuleType:
    return importlib.import_module("draw")


def run(script: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(script), *options],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "src")},
    )


def comparison(date: str, *, form: str = "full", speed: float = 20.0) -> dict[str, Any]:
    def summary(value: float, ratio: float = 1.0) -> dict[str, Any]:
        spread = {"median": value, "lowest": value - 0.5, "highest": value + 0.5}
        return {**spread, "ratio": {"median": ratio, "lowest": ratio, "highest": ratio}}

    rows = [
        {
            "name": name,
            "samples_per_second": summary(speed * times, times),
            "tokens_per_second": summary(100),
            "memory_mib": summary(1000),
            "accuracy": summary(0.7),
        }
        for name, times in (("Trainer", 1.0), ("headstart", 3.0))
    ]
    machine = {"processor": "CPU X", "instructions": "AVX2", "cores": 2, "memory_gib": 8}
    return {
        "benchmark": "against_trainer",
        "form": form,
        "date": date,
        "command": "python benchmarks/against_trainer.py",
        "machine": machine,
        "versions": {"torch": "2.13.0"},
        "settings": {"rounds": 5},
        "rows": rows,
    }


def write(folder: Path, *results: dict[str, Any], name: str = "against_trainer") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for result in results:
        (folder / f"{name}-{result['date']}.json").write_text(json.dumps(result))
    return folder


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_script_explains_itself(script: Path) -> None:
    done = run(script, "--help")
    assert done.returncode == 0, done.stderr
    first_line = script.read_text(encoding="utf-8").splitlines()[0].removeprefix('"""')
    assert " ".join(first_line.split()) in " ".join(done.stdout.split())


@pytest.mark.slow
@pytest.mark.parametrize("script", [path for path in SCRIPTS if path.stem != "draw"], ids=lambda path: path.stem)
def test_tiny_form_of_a_script_runs_and_is_drawn(script: Path, tmp_path: Path, draw: ModuleType) -> None:
    writes = "--json" in run(script, "--help").stdout
    done = run(script, "--tiny", *(["--json", str(tmp_path / "result.json")] if writes else []))
    if done.returncode == MISSING_PACKAGE and "pip install" in done.stderr:
        return  # a comparison with a library that is not installed says how to install it
    assert done.returncode == 0, done.stdout + done.stderr
    if writes:
        result = json.loads((tmp_path / "result.json").read_text())
        assert result["form"] == "tiny"
        assert {"benchmark", "date", "command", "machine", "versions", "settings"} <= result.keys()
        assert result["machine"]["cores"] >= 1
        page = "<!-- table: it -->\n<!-- end of table -->\n"
        assert draw.fill_page(page, {"it": result}).count("\n|") > 2


def test_pages_and_plot_are_what_the_results_in_the_tree_give(draw: ModuleType) -> None:
    for name, text in draw.draw_all(REPOSITORY).items():
        assert (REPOSITORY / name).read_text(encoding="utf-8") == text, f"{name}: run python benchmarks/draw.py"


def test_readme_has_a_place_for_the_speed_table_once_it_is_measured(draw: ModuleType) -> None:
    if "against_trainer" in draw.read_results(BENCHMARKS / "results"):
        assert "<!-- speed table -->" in (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_results_in_the_tree_are_of_the_full_form_and_named_by_script_and_day() -> None:
    for path in (BENCHMARKS / "results").glob("*.json"):
        result = json.loads(path.read_text(encoding="utf-8"))
        assert result["form"] == "full", path
        assert path.stem.startswith(result["benchmark"]), path
        assert path.stem.endswith(result["date"]), path


def test_newest_full_result_is_drawn(draw: ModuleType, tmp_path: Path) -> None:
    newest = comparison("2026-02-03", speed=30.0)
    folder = write(tmp_path, comparison("2026-01-09"), newest, comparison("2026-03-01", form="short"))
    write(folder, comparison("2026-02-01"), name="against_trainer-mrpc")
    found = draw.read_results(folder)
    assert found.keys() == {"against_trainer", "against_trainer-mrpc"}
    assert found["against_trainer"] == newest


def test_a_place_gets_the_numbers_with_where_they_come_from(draw: ModuleType, tmp_path: Path) -> None:
    results = draw.read_results(write(tmp_path, comparison("2026-01-09")))
    page = "before\n<!-- speed table -->\nold numbers\n<!-- end of table -->\nafter\n"
    filled = draw.fill_page(page, results)
    assert filled.startswith("before\n<!-- speed table -->\n")
    assert filled.endswith("\n<!-- end of table -->\nafter\n")
    assert "old numbers" not in filled
    for words in ("60.0 [59.5, 60.5]", "3.00", "2 cores of a CPU X (AVX2), 8 GiB", "torch 2.13.0", "2026-01-09"):
        assert words in filled
    assert draw.fill_page(filled, results) == filled


def test_a_place_says_so_when_nothing_is_measured(draw: ModuleType) -> None:
    page = "<!-- table: parts -->\n| 1.0 |\n<!-- end of table -->\n<!-- speed picture -->\n<!-- end of table -->\n"
    assert draw.fill_page(page, {}) == page.replace("| 1.0 |", "Not measured yet.")


def test_scores_of_seeds_stand_beside_the_first_with_an_interval(draw: ModuleType) -> None:
    result = comparison("2026-01-09")
    result["settings"] = {"rows": "mrpc/train.jsonl, all", "epochs": 3}
    for row, values in zip(result["rows"], ([0.70, 0.72, 0.74], [0.71, 0.73, 0.78]), strict=True):
        row["accuracy"]["values"] = values
    results = {"against_trainer-scores-mrpc": result, "against_trainer": comparison("2026-01-09")}
    filled = draw.fill_page("<!-- scores -->\n<!-- end of table -->\n", results)
    titles, _, first, other = filled.splitlines()[1:5]
    assert "mrpc/train.jsonl, all; epochs 3" in titles and "0.720" in first and "0.700 to 0.740" in first
    # Welch: variances 0.0004 and 0.0013 of three values each, 3.12 degrees of freedom, t = 3.111.
    assert "0.740" in other and "+0.020 [-0.054, +0.094]" in other
    assert draw.fill_page("<!-- scores -->\n<!-- end of table -->\n", {}).splitlines()[1] == "Not measured yet."

    again = {**result, "command": "python again", "rows": [copy.deepcopy(result["rows"][1])]}
    again["rows"][0]["accuracy"]["values"] = [0.81, 0.83, 0.88]
    filled = draw.fill_page(
        "<!-- scores -->\n<!-- end of table -->\n", results | {"against_trainer-scores-mrpc-again": again}
    )
    assert filled.count("epochs 3") == 1 and "0.840" in filled and "+0.120" in filled and "+0.020" not in filled
    assert f"`{result['command']}`" in filled and "`python again`" in filled


def test_default_numbers_of_several_data_sets_stand_in_one_table(draw: ModuleType) -> None:
    def compared(name: str, ours: list[float]) -> dict[str, Any]:
        table = {
            "split": "test",
            "headstart": {"score": "accuracy", "values": ours, "seconds": [1.0, 1.0]},
            "Trainer": {"score": "accuracy", "values": [0.7, 0.8], "seconds": [4.0, 4.0]},
            "difference": {"value": 0.05, "low": -0.01, "high": 0.11, "rows": 1000},
        }
        return {**comparison("2026-01-09"), "command": f"python for {name}", "tables": {name: table}}

    results = {"defaults-mrpc": compared("MRPC", [0.8, 0.8]), "defaults-stsb": compared("STS-B", [0.9, 0.9])}
    filled = draw.fill_page("<!-- default numbers -->\n<!-- end of table -->\n", results)
    first, other = (line for line in filled.splitlines() if line.startswith(("| MRPC", "| STS-B")))
    assert "0.7500 ± 0.0707" in first and "0.8000 ± 0.0000" in first and "+0.0500 [-0.0100, +0.1100]" in first
    assert "0.9000" in other and "0.25" in other and "accuracy, test, 1,000 rows" in other
    assert "`python for MRPC`" in filled and "`python for STS-B`" in filled
    assert "Not measured yet." in draw.fill_page("<!-- default numbers -->\n<!-- end of table -->\n", {})


def test_plot_has_a_bar_as_long_as_the_speed_for_each_contestant(draw: ModuleType) -> None:
    root = ElementTree.fromstring(draw.draw_plot(comparison("2026-01-09")))
    bars = [float(bar.attrib["width"]) for bar in root.iter("{http://www.w3.org/2000/svg}rect")]
    assert len(bars) == 2
    assert bars[1] == pytest.approx(3 * bars[0], rel=0.01)
    words = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"Trainer", "headstart", "20.0 (1.00 x)", "60.0 (3.00 x)"} <= set(words)


def test_examples_of_what_the_scripts_share_run(benchmark_modules: None) -> None:
    result = doctest.testmod(importlib.import_module("measuring"))
    assert result.attempted > 0
    assert not result.failed


def test_each_contestant_has_a_turn_a_round_in_alternating_order(benchmark_modules: None) -> None:
    measuring = importlib.import_module("measuring")
    turns = list(measuring.alternate(["a", "b", "c"], 3))
    assert [name for _, name in turns] == ["a", "b", "c", "c", "b", "a", "a", "b", "c"]


def test_arithmetic_of_a_step_is_what_pytorch_counts(benchmark_modules: None) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    limit, steps = importlib.import_module("limit"), importlib.import_module("training_steps")
    model = steps.make_model("tiny")
    model.set_attn_implementation("eager")
    rows = steps.make_rows(4, 500, length=12)
    with FlopCounterMode(display=False) as counter:
        loss, _ = steps._micro_batch(model, rows.make_batch(np.arange(4)), 4)
        loss.backward()
    assert limit.arithmetic(model, limit.linear_layers(model), rows.lengths) == counter.get_total_flops()


def test_made_up_rows_are_as_long_as_those_of_mrpc_and_the_same_for_a_seed(benchmark_modules: None) -> None:
    steps = importlib.import_module("training_steps")
    rows, again = steps.make_rows(4000, 30_522), steps.make_rows(4000, 30_522)
    assert rows.lengths.mean() == pytest.approx(53.2, abs=1)
    assert all(np.array_equal(one, other) for one, other in zip(rows.ids, again.ids, strict=True))


def test_a_part_left_out_takes_those_along_that_need_it(benchmark_modules: None) -> None:
    parts = importlib.import_module("parts")
    arguments = parts.argparse.Namespace(precision="bf16", only=None, short=False)
    settings = parts.list_settings(arguments, 8, 53.0)
    whole = settings["the whole"].parts
    of_bfloat16 = {"bf16_weights", "packed_weights", "joined_qkv", "whole_layers", "padding_free"}
    assert whole - settings["all but: bf16_weights"].parts == of_bfloat16
    assert settings["alone: joined_qkv"].parts == {"joined_qkv", "bf16_weights", "optimizer_pass"}
    assert settings["alone: gelu"].parts == {"gelu"}
    assert not settings["no parts"].parts


def test_only_names_parts_that_there_are_with_the_precision(benchmark_modules: None) -> None:
    parts = importlib.import_module("parts")
    arguments = parts.argparse.Namespace(precision="bf16", only=["onednn_float32"], short=False)
    with pytest.raises(SystemExit, match="--only onednn_float32: with bf16 there are bf16_weights"):
        parts.list_settings(arguments, 8, 53.0)
