"""What load, combine and the list of metrics take and refuse, and what importing them costs."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from headstart import evaluate
from headstart.errors import HeadstartError, RecipeError
from headstart.evaluate.faults import MissingPackageError, UnknownConfigError, UnknownMetricError

GLUE = ["cola", "sst2", "mrpc", "stsb", "mnli", "mnli_mismatched", "mnli_matched", "qnli", "rte", "wnli", "hans", "qqp"]


def test_the_surface() -> None:
    assert set(evaluate.__all__) == {
        "CombinedEvaluations",
        "EvaluationModule",
        "Metric",
        "MissingPackageError",
        "UnknownConfigError",
        "UnknownMetricError",
        "combine",
        "list_evaluation_modules",
        "load",
        "load_metric",
    }
    assert evaluate.load_metric is evaluate.load
    assert evaluate.EvaluationModule is evaluate.Metric


def test_importing_and_loading_is_cheap() -> None:
    code = (
        "import sys\nfrom headstart import evaluate\nimport headstart.evaluate as same\nassert same is evaluate\n"
        "evaluate.combine([name for name in evaluate.list_evaluation_modules() if name != 'glue'])\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    heavy = {"torch", "transformers", "datasets", "sklearn", "scipy", "sacrebleu", "seqeval", "rouge_score", "pydantic"}
    assert not heavy & set(done.stdout.split())


def test_the_list() -> None:
    names = evaluate.list_evaluation_modules("metric", include_community=False)
    assert names == sorted(names)
    assert {"accuracy", "f1", "glue", "seqeval", "squad_v2", "rouge", "sacrebleu", "bleu", "perplexity"} <= set(names)
    assert evaluate.list_evaluation_modules("comparison") == []
    details = {module["name"]: module for module in evaluate.list_evaluation_modules(with_details=True)}
    assert set(details["glue"]["configs"]) == set(GLUE) and details["glue"]["type"] == "metric"


@pytest.mark.parametrize("name", [name for name in evaluate.list_evaluation_modules() if name != "glue"])
def test_a_metric_says_what_it_is(name: str) -> None:
    metric = evaluate.load(name)
    assert (metric.name, metric.config_name, metric.module_type) == (name, "default", "metric")
    assert metric.description.endswith(".") and "http" in metric.citation and metric.features
    assert all(column in metric.inputs_description for column in metric.features)
    assert name in repr(metric) and len(metric) == 0 and metric


@pytest.mark.parametrize("task", GLUE)
def test_glue_has_its_tasks(task: str) -> None:
    assert evaluate.load("glue", task).config_name == task
    assert evaluate.load("glue", config_name=task).name == "glue"


def test_a_name_of_the_hub_is_known() -> None:
    assert evaluate.load("evaluate-metric/accuracy").name == "accuracy"


def test_what_says_where_to_download_is_accepted() -> None:
    metric = evaluate.load(
        "accuracy",
        module_type="metric",
        cache_dir="/nowhere",
        keep_in_memory=True,
        download_config=None,
        download_mode="force_redownload",
        revision="main",
        trust_remote_code=True,
        experiment_id="x",
    )
    assert metric.compute(predictions=[1], references=[1]) == {"accuracy": 1.0}
    assert metric.experiment_id == "x" and metric.num_process == 1 and metric.process_id == 0


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        (("acuracy",), UnknownMetricError, '"accuracy"'),
        (("evaluate-metric/acuracy",), UnknownMetricError, '"accuracy"'),
        (("acuracy",), FileNotFoundError, "Available: accuracy, bleu"),
        (("glue",), UnknownConfigError, "mnli_matched"),
        (("glue", "mrcp"), KeyError, '"mrpc"'),
        (("accuracy", "multilable"), UnknownConfigError, '"multilabel"'),
        (("./my_metric.py",), RecipeError, "evaluate.load(my_score)"),
        (("some/my_metric.py",), RecipeError, "is not run"),
        ((3,), RecipeError, "a name or a function"),
        ((lambda a, b: {},), RecipeError, "predictions and references"),
    ],
)
def test_an_unknown_name_offers_others(arguments: tuple[Any, ...], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind) as raised:
        evaluate.load(*arguments)
    assert isinstance(raised.value, HeadstartError)
    assert words in str(raised.value)
    assert raised.value.expected and raised.value.fix


def test_a_script_at_hand_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "mine.py").write_text("raise SystemExit('it was run')", encoding="utf-8")
    for path in (tmp_path / "mine", tmp_path / "mine" / "mine.py"):
        with pytest.raises(RecipeError, match="a script is not run"):
            evaluate.load(str(path))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"experimentid": "x"}, '"experiment_id"'),
        ({"module_type": "comparison"}, "module_type"),
        ({"num_process": 2, "process_id": 2}, "process_id is 2 of 2"),
        ({"process_id": -1}, "process_id"),
        ({"num_process": 0}, "num_process"),
        ({"num_process": 2, "keep_in_memory": True}, "keep_in_memory"),
        ({"timeout": 0}, "timeout"),
        ({"seed": -1}, "seed"),
    ],
)
def test_arguments_out_of_range(options: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        evaluate.load("accuracy", **options)


def test_a_configuration_of_a_function_is_refused() -> None:
    with pytest.raises(RecipeError, match="is a function"):
        evaluate.load(lambda predictions, references: {}, "mrpc")


@pytest.mark.parametrize("name", ["rouge", "sacrebleu", "bleu", "seqeval"])
def test_a_missing_package_names_the_install_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in list(sys.modules):
        if module.partition(".")[0] in ("rouge_score", "sacrebleu", "seqeval"):
            monkeypatch.delitem(sys.modules, module)
    for package in ("rouge_score", "sacrebleu", "seqeval"):
        monkeypatch.setitem(sys.modules, package, None)
    rows = [["O"]] if name == "seqeval" else ["a"]
    with pytest.raises(MissingPackageError, match=r"headstart\[metrics\]") as raised:
        evaluate.load(name).compute(predictions=rows, references=rows)
    assert isinstance(raised.value, ImportError)
    if name == "bleu":
        scores = evaluate.load(name).compute(predictions=rows, references=rows, tokenizer=str.split, max_order=1)
        assert scores is not None and scores["bleu"] == 1.0


def test_the_docstrings_run() -> None:
    import doctest
    import importlib

    folder = Path(evaluate.__file__).parent
    tried = 0
    for name in sorted(os.listdir(folder)):
        if name.endswith(".py"):
            module = importlib.import_module(f"headstart.evaluate.{name.removesuffix('.py')}")
            result = doctest.testmod(module, extraglobs={"evaluate": evaluate})
            assert result.failed == 0, name
            tried += result.attempted
    assert tried > 15
