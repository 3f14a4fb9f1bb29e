"""The names that `from headstart import NAME` hands through, and what is said about those that it does not."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

import headstart
from headstart.drop_in import dropped_names, library_names, lookup

SOURCE = Path(headstart.__file__).parent
SCRIPT = SOURCE.parent.parent / "scripts" / "write_library_names.py"
HEAVY = {"torch", "transformers", "datasets", "accelerate", "pydantic", "numpy"}


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(SOURCE.parent)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def import_by_name(name: str) -> Any:
    """Do what a script does: `from headstart import NAME`."""
    names: dict[str, Any] = {}
    exec(f"from headstart import {name}", names)
    return names[name]


@pytest.fixture
def uncached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the package forget what it has handed through in this test."""
    for name in ("EvaluationStrategy", "MT5TokenizerFast", "AutoConfig", "BertConfig"):
        monkeypatch.delitem(vars(headstart), name, raising=False)


def installed_versions() -> dict[str, str]:
    return {library: importlib.metadata.version(library) for library in library_names.VERSIONS}


@pytest.mark.skipif(not SCRIPT.exists(), reason="the script that writes the table is in the repository only")
@pytest.mark.skipif(
    installed_versions() != library_names.VERSIONS,
    reason="the table was written from other releases: run python scripts/write_library_names.py and see what changed",
)
def test_the_table_is_what_the_script_writes() -> None:
    spec = importlib.util.spec_from_file_location("write_library_names", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.render() == script.TABLE.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "library"),
    [
        ("AutoTokenizer", "transformers"),
        ("BertForSequenceClassification", "transformers"),
        ("BertConfig", "transformers"),
        ("DataCollatorWithPadding", "transformers"),
        ("EarlyStoppingCallback", "transformers"),
        ("EvalPrediction", "transformers"),
        ("HfArgumentParser", "transformers"),
        ("IntervalStrategy", "transformers"),
        ("TrainerCallback", "transformers"),
        ("TrainerControl", "transformers"),
        ("TrainerState", "transformers"),
        ("get_scheduler", "transformers"),
        ("get_linear_schedule_with_warmup", "transformers"),
        ("is_torch_available", "transformers"),
        ("logging", "transformers"),
        ("pipeline", "transformers"),
        ("set_seed", "transformers"),
        ("ClassLabel", "datasets"),
        ("Dataset", "datasets"),
        ("DatasetDict", "datasets"),
        ("Sequence", "datasets"),
        ("concatenate_datasets", "datasets"),
        ("load_from_disk", "datasets"),
        ("Accelerator", "accelerate"),
        ("DataLoaderConfiguration", "accelerate"),
        ("notebook_launcher", "accelerate"),
    ],
)
def test_a_name_is_the_library_s_own_object(name: str, library: str) -> None:
    found = import_by_name(name)
    if name.startswith("Auto"):  # derived from, see test_names_of_models_and_data.py
        assert issubclass(found, getattr(importlib.import_module(library), name))
    else:
        assert found is getattr(importlib.import_module(library), name)
    assert vars(headstart)[name] is found


def test_a_fast_tokenizer_answers_to_its_old_name() -> None:
    import transformers

    assert import_by_name("BertTokenizerFast") is transformers.BertTokenizer


def test_no_name_of_a_library_hides_one_of_headstart() -> None:
    table = lookup.library_names()
    modules = {path.stem for path in SOURCE.iterdir()}
    assert "api" in modules and len(table) > 4000
    assert not modules & set(table)
    assert not set(headstart.__all__) & set(table)
    assert all(name.isidentifier() and not name.startswith("_") for name in table)


def test_the_loops_of_transformers_are_not_handed_through() -> None:
    assert not {"Trainer", "Seq2SeqTrainer", "TrainingArguments", "Seq2SeqTrainingArguments"} & set(
        lookup.library_names()
    )
    with pytest.raises(ImportError, match=r"Seq2SeqTrainer\. It runs another training loop.* Use Trainer"):
        import_by_name("Seq2SeqTrainer")


def test_a_typo_is_answered_without_importing_a_library() -> None:
    said = run_python(
        """
import sys, headstart
try:
    from headstart import AutoTokeniser
except ImportError as error:
    print(error)
try:
    headstart.BertForSequenceClasification
except AttributeError as error:
    print(error)
assert not hasattr(headstart, "NoSuchThing")
assert "AutoModel" in dir(headstart) and "Trainer" in dir(headstart)
print("LOADED", *{name.split(".")[0] for name in sys.modules})
"""
    )
    assert 'headstart has no name "AutoTokeniser". Did you mean AutoTokenizer?\n' in said
    assert "Did you mean BertForSequenceClassification" in said
    assert not HEAVY & set(said.partition("LOADED ")[2].split())


def test_a_name_like_nothing_lists_what_there_is() -> None:
    with pytest.raises(ImportError, match=r'no name "zzzqqq"\.\nExpected: a name of headstart \(AdamW, ') as caught:
        import_by_name("zzzqqq")
    assert all(f"{library} {version}" in str(caught.value) for library, version in library_names.VERSIONS.items())


def test_a_module_of_headstart_is_still_imported_by_name() -> None:
    said = run_python("from headstart import errors, run_files; print(errors.__name__, run_files.__name__)")
    assert said.split() == ["headstart.errors", "headstart.run_files"]


@pytest.mark.usefixtures("uncached")
def test_a_name_that_the_installed_release_lacks_names_both_releases(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {**lookup.library_names(), "BertNovelty": "transformers"}
    monkeypatch.setattr(lookup, "library_names", lambda: table)
    with pytest.raises(ImportError, match=r"transformers \S+ has no BertNovelty, which headstart knows from") as caught:
        import_by_name("BertNovelty")
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


def test_a_missing_library_is_said_by_transformers_itself() -> None:
    if importlib.util.find_spec("torchvision") is not None:
        pytest.skip("torchvision is installed")
    found = import_by_name("AutoVideoProcessor")
    with pytest.raises(ImportError, match="requires the Torchvision library"):
        found.from_pretrained("anything")


def test_every_dropped_name_is_gone_and_every_advice_names_what_is_there() -> None:
    table = lookup.library_names()
    known = {*table, *headstart.__all__, *vars(headstart)}
    assert not set(dropped_names.DROPPED) & known
    assert not set(dropped_names.RENAMED) & known
    assert not [new for new in dropped_names.RENAMED.values() if new not in table]
    assert not [name for name in table if name.startswith(dropped_names.REMOVED_FAMILIES) and dropped_names.advice(
        name, table) is not None]  # fmt: skip
    words = {word for text in dropped_names.DROPPED.values() for word in text.replace("(", " ").split()}
    classes = {word.strip(".,;)") for word in words if word.startswith(("Auto", "DataCollator", "TopK", "Logits"))}
    assert classes and not classes - known


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("AutoModelWithLMHead", "Use AutoModelForCausalLM"),
        ("glue_processors", r"Use load_dataset\("),
        ("is_tf_available", "remove the line"),
        ("TFBertModel", "Use BertModel"),
        ("FlaxAutoModel", "Use AutoModel"),
        ("TransfoXLModel", "family of models no more"),
        ("BloomTokenizerFast", "AutoTokenizer.from_pretrained"),
        ("M2M100TokenizerFast", "AutoTokenizer.from_pretrained"),
        ("list_metrics", "headstart.evaluate"),
    ],
)
def test_a_dropped_name_says_what_to_use(name: str, said: str) -> None:
    with pytest.raises(ImportError, match=rf"^headstart does not have {name}\. .*{said}") as caught:
        import_by_name(name)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("uncached")
@pytest.mark.parametrize(
    ("old", "new"), [("EvaluationStrategy", "IntervalStrategy"), ("MT5TokenizerFast", "T5Tokenizer")]
)
def test_a_renamed_name_is_given_with_one_line_of_notice(old: str, new: str) -> None:
    import transformers

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = import_by_name(old)
    assert found is getattr(transformers, new)
    (notice,) = [entry for entry in caught if "headstart" in str(entry.message)]
    assert str(notice.message) == f"{old} is {new} today; headstart gives you that."
    assert notice.filename == "<string>"  # the line that imports it


def test_a_star_import_brings_headstart_s_own_names_only() -> None:
    assert len(headstart.__all__) < 50
    assert {"AdamW", "Trainer", "TrainingArguments", "evaluate", "load_dataset", "load_metric"} <= {*headstart.__all__}
    assert set(headstart.__all__) == set(headstart._HOME)


def test_what_type_checkers_are_told_is_what_is_given() -> None:
    tree = ast.parse((SOURCE / "__init__.py").read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    told = {}
    for statement in block.body:
        assert isinstance(statement, ast.ImportFrom) and statement.module is not None
        for alias in statement.names:
            assert alias.asname == alias.name
            told[alias.name] = statement.module
    assert set(headstart.__all__) <= set(told)
    table = lookup.library_names()
    for name, module in told.items():
        if module.split(".")[0] == "headstart":
            home = headstart._HOME[name]
            assert module == (f"headstart.{home}" if home else "headstart")
        else:
            assert table[name] == module
        assert getattr(headstart, name) is not None
