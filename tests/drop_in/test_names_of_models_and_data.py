"""Names of checkpoints and of data sets: a folder here, the cache, the hub; and one line where none has it."""

from __future__ import annotations

import inspect
import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from headstart import ModelError, load_dataset
from headstart.drop_in import hub
from headstart.drop_in.pretrained import derive_auto_class
from headstart.errors import SourceError


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def no_host(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Be online by the settings, on a machine that finds no host; gives the hosts asked for."""
    import datasets
    from huggingface_hub import constants

    asked: list[str] = []

    def fail(host: str, *_: Any, **__: Any) -> None:
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", fail)
    for scheme in ("http", "https", "all"):
        monkeypatch.delenv(f"{scheme}_proxy", raising=False)
        monkeypatch.delenv(f"{scheme}_proxy".upper(), raising=False)
    return asked


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_splits(folder: Path, **rows: int) -> None:
    for split, count in rows.items():
        write(folder / f"{split}.csv", "text,label", *(f"row {row},{row % 2}" for row in range(count)))


# Models


@pytest.mark.parametrize(
    "name", ["AutoConfig", "AutoTokenizer", "AutoModel", "AutoModelForSequenceClassification", "AutoFeatureExtractor"]
)
def test_a_checkpoint_that_cannot_be_had_is_said_in_one_line(name: str, here: Path) -> None:
    import headstart

    with pytest.raises(ModelError) as caught:
        getattr(headstart, name).from_pretrained("bert-base-uncased")
    first, expected, fix = str(caught.value).split("\n")
    assert first.startswith(f'"bert-base-uncased" cannot be had for {name}: there is no folder of that name here')
    assert "HF_HUB_OFFLINE is set" in first and "give the path of a folder" in first
    assert expected.startswith("Expected: ") and fix.startswith(f'To do: {name}.from_pretrained("')
    assert caught.value.__cause__ is None and caught.value.__context__ is None
    assert isinstance(caught.value, OSError)


def test_without_a_network_the_answer_comes_at_once(here: Path, no_host: list[str]) -> None:
    from headstart import AutoTokenizer

    with pytest.raises(ModelError, match=r"huggingface\.co cannot be found on the network \(Name or service not known"):
        AutoTokenizer.from_pretrained("bert-base-uncased")
    assert no_host == ["huggingface.co"]  # the client of the hub would try again, for more than 20 seconds


def fill_cache(cache: Path, tiny_model_dir: Path) -> None:
    """Lay a model into a cache as the client of the hub does."""
    repository = cache / "models--someone--tiny"
    shutil.copytree(tiny_model_dir, repository / "snapshots" / ("0" * 40))
    write(repository / "refs" / "main").write_text("0" * 40, encoding="utf-8")


def test_without_a_network_the_cache_is_used(
    here: Path, tiny_model_dir: Path, no_host: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from headstart import AutoConfig, AutoTokenizer

    fill_cache(here / "cache", tiny_model_dir)
    assert AutoConfig.from_pretrained("someone/tiny", cache_dir="cache").hidden_size == 32
    assert len(AutoTokenizer.from_pretrained("someone/tiny", cache_dir="cache")("a film")["input_ids"]) == 4
    assert set(no_host) == {"huggingface.co"}


def test_a_cache_that_lacks_a_file_is_said(here: Path, tiny_model_dir: Path) -> None:
    from headstart import AutoModel

    fill_cache(here / "cache", tiny_model_dir)
    (here / "cache/models--someone--tiny/snapshots" / ("0" * 40) / "config.json").unlink()
    with pytest.raises(ModelError, match="the cache cache does not have all of it"):
        AutoModel.from_pretrained("someone/tiny", cache_dir="cache")


def test_a_folder_of_the_name_comes_first(here: Path, tiny_model_dir: Path, no_host: list[str]) -> None:
    import transformers

    from headstart import AutoModelForSequenceClassification, AutoTokenizer

    shutil.copytree(tiny_model_dir, here / "bert-base-uncased")
    model = AutoModelForSequenceClassification.from_pretrained("bert-base-uncased", num_labels=3)
    assert type(model) is transformers.BertForSequenceClassification and model.config.num_labels == 3
    named = AutoTokenizer.from_pretrained(pretrained_model_name_or_path="bert-base-uncased")
    assert isinstance(named, transformers.PreTrainedTokenizerBase)
    assert no_host == []


def test_a_path_that_leads_nowhere_offers_the_nearest(here: Path, no_host: list[str]) -> None:
    from headstart import AutoModel

    (here / "models" / "tiny").mkdir(parents=True)
    with pytest.raises(ModelError, match=r'^\./models/tinny: there is no such model folder\.(.|\n)*"models/tiny"'):
        AutoModel.from_pretrained("./models/tinny")
    assert no_host == []


def test_other_errors_stay_the_library_s(here: Path, tiny_model_dir: Path) -> None:
    from headstart import AutoModel

    shutil.copytree(tiny_model_dir, here / "broken")
    write(here / "broken" / "config.json", "{no json")
    with pytest.raises(OSError, match=r"config\.json.*not a valid JSON file") as caught:
        AutoModel.from_pretrained("broken")
    assert not isinstance(caught.value, ModelError)


def test_an_answer_of_the_hub_that_there_is_no_such_model_stays_the_library_s(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headstart.drop_in.pretrained.why_out_of_reach", lambda: None)

    class AutoThing:
        @classmethod
        def from_pretrained(cls, checkpoint: str, **options: Any) -> None:
            assert options == {}
            raise OSError(f"{checkpoint} is not a valid model identifier")

    with pytest.raises(OSError, match="not a valid model identifier") as caught:
        derive_auto_class("AutoThing", AutoThing).from_pretrained("bret")  # type: ignore[attr-defined]
    assert type(caught.value) is OSError


def test_what_is_registered_is_the_library_s(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    import headstart

    class OddConfig(transformers.BertConfig):
        model_type = "odd-one"

    class OddModel(transformers.BertModel):
        config_class = OddConfig

    headstart.AutoConfig.register("odd-one", OddConfig)
    headstart.AutoModel.register(OddConfig, OddModel)
    try:
        small = {"vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        assert isinstance(transformers.AutoConfig.for_model("odd-one"), OddConfig)
        assert type(transformers.AutoModel.from_config(OddConfig(**small, intermediate_size=8))) is OddModel
        assert type(headstart.AutoModel.from_config(OddConfig(**small, intermediate_size=8))) is OddModel
    finally:
        transformers.CONFIG_MAPPING._extra_content.pop("odd-one")
        transformers.MODEL_MAPPING._extra_content.pop(OddConfig)


def test_code_of_a_checkpoint_is_not_run_unasked(here: Path) -> None:
    from headstart import AutoConfig

    code = "from transformers import BertConfig\nraise SystemExit('the code ran')\nclass Own(BertConfig): pass"
    write(here / "own" / "configuration_own.py", code)
    card = {"model_type": "own", "auto_map": {"AutoConfig": "configuration_own.Own"}}
    write(here / "own" / "config.json", json.dumps(card))
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        AutoConfig.from_pretrained("own", trust_remote_code=False)


# The hub


def test_a_proxy_or_a_known_host_leaves_the_question_open(no_host: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub.why_out_of_reach() is not None
    monkeypatch.setenv("https_proxy", "http://proxy.invalid:8080")
    assert hub.why_out_of_reach() is None
    monkeypatch.delenv("https_proxy")
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [])
    assert hub.why_out_of_reach() is None


def test_a_failure_that_may_pass_is_looked_at_twice(no_host: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[int] = [socket.EAI_AGAIN]

    def once(*_: Any) -> list[Any]:
        if answers:
            raise socket.gaierror(answers.pop(), "Temporary failure in name resolution")
        return []

    monkeypatch.setattr(hub, "_PAUSE", 0.0)
    monkeypatch.setattr(socket, "getaddrinfo", once)
    assert hub.why_out_of_reach() is None
    answers[:] = [socket.EAI_AGAIN, socket.EAI_AGAIN]
    assert "Temporary failure" in str(hub.why_out_of_reach()) and answers == []


# Data sets


def test_signature_is_that_of_the_library() -> None:
    import datasets

    ours, theirs = inspect.signature(load_dataset).parameters, inspect.signature(datasets.load_dataset).parameters
    assert [(p.name, p.default, p.kind) for p in ours.values()] == [
        (p.name, p.default, p.kind) for p in theirs.values()
    ]


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train.csv", "validation.csv", "test.csv"], {"train": 1, "validation": 1, "test": 1}),
        (["test.jsonl", "dev.jsonl", "train.jsonl"], {"train": 1, "validation": 1, "test": 1}),
        (["train.tsv", "dev_matched.tsv", "dev_mismatched.tsv"],
         {"train": 1, "validation_matched": 1, "validation_mismatched": 1}),
        (["train-1.csv", "train-2.csv"], {"train": 2}),
        (["train/a.csv", "test/b.csv"], {"train": 1, "test": 1}),
        (["reviews.csv", "README.txt"], {"train": 1}),
        (["train.tsv", "dev.tsv", "msr_paraphrase_train.txt"], {"train": 1, "validation": 1}),
    ],
)  # fmt: skip
def test_the_files_of_a_folder_are_its_splits(here: Path, names: list[str], splits: dict[str, int]) -> None:
    lines = {".csv": ["text,label", "good,1"], ".tsv": ["text\tlabel", "good\t1"], ".txt": ["words"]}
    for name in names:
        write(here / "glue" / "mrpc" / name, *lines.get(Path(name).suffix, ['{"text": "good", "label": 1}']))
    for found in (load_dataset("glue", "mrpc"), load_dataset("glue/mrpc"), load_dataset(str(here / "glue"), "MRPC")):
        assert {split: table.num_rows for split, table in found.items()} == splits
        assert list(found) == list(splits)
        assert found["train"].column_names == ["text", "label"]


def test_parquet_and_saved_folders_are_read(here: Path) -> None:
    import datasets

    tables = datasets.DatasetDict(
        train=datasets.Dataset.from_dict({"a": [1, 2, 3, 4]}), test=datasets.Dataset.from_dict({"a": [5]})
    )
    (here / "files").mkdir()
    for split, table in tables.items():
        table.to_parquet(here / "files" / f"{split}.parquet")
    tables.save_to_disk("saved/whole")
    tables["test"].save_to_disk("saved/one")
    assert load_dataset("files")["train"]["a"][:] == [1, 2, 3, 4]
    assert {split: table["a"][:] for split, table in load_dataset("saved", "whole").items()} == {
        "train": [1, 2, 3, 4],
        "test": [5],
    }
    assert load_dataset("saved/one")["train"]["a"][:] == [5]
    assert load_dataset("saved/whole", split="train[50%:]+test")["a"][:] == [3, 4, 5]
    assert load_dataset("saved/whole", split="all")["a"][:] == [1, 2, 3, 4, 5]
    assert [part["a"][:] for part in load_dataset("saved/whole", split=["test", "train[:1]"])] == [[5], [1]]
    assert [row["a"] for row in load_dataset("saved/whole", split="test", streaming=True)] == [5]
    assert list(load_dataset("saved/whole", streaming=True)) == ["train", "test"]
    with pytest.raises(SourceError, match=r'saved/whole: the split "trian" cannot be taken'):
        load_dataset("saved/whole", split="trian")
    with pytest.raises(SourceError, match="where sep has no effect"):
        load_dataset("saved/whole", sep=";")


def test_the_card_of_a_folder_names_its_configurations(here: Path) -> None:
    card = "---\nconfigs:\n- config_name: small\n  data_files: x.csv\n- config_name: large\n  data_files: y.csv\n---"
    write(here / "cards" / "README.md", card)
    write(here / "cards" / "x.csv", "text", "one")
    write(here / "cards" / "y.csv", "text", "one", "two")
    assert load_dataset("cards", "large", split="train").num_rows == 2
    with pytest.raises(ValueError, match="BuilderConfig 'huge' not found"):
        load_dataset("cards", "huge")


def test_options_reach_the_library(here: Path) -> None:
    write_splits(here / "glue" / "mrpc", train=10, test=3)
    assert load_dataset("glue", "mrpc", split="train[:20%]").num_rows == 2
    assert len(list(load_dataset("glue", "mrpc", streaming=True)["test"])) == 3
    file = str(here / "glue" / "mrpc" / "test.csv")
    assert load_dataset("csv", data_files={"odd": file})["odd"].num_rows == 3
    assert load_dataset("text", data_files=file, split="train").num_rows == 4
    assert load_dataset("csv", data_files=file, split="train", names=["x", "y"]).column_names == ["x", "y"]


def test_a_missing_configuration_is_named_with_those_there_are(here: Path) -> None:
    write_splits(here / "glue" / "mrpc", train=1)
    write_splits(here / "glue" / "cola", train=1)
    with pytest.raises(SourceError, match=r'no configuration "mprc"(.|\n)*"mrpc"\? Available: cola, mrpc'):
        load_dataset("glue", "mprc")
    with pytest.raises(SourceError, match=r"in subfolders \(cola, mrpc\), and none is named"):
        load_dataset("glue")


@pytest.mark.parametrize("name", ["glue", "nyu-mll/glue"])
def test_a_data_set_that_cannot_be_had_is_said_in_one_line(name: str, here: Path) -> None:
    with pytest.raises(SourceError) as caught:
        load_dataset(name, "mrpc")
    first, expected, fix = str(caught.value).split("\n")
    assert first.startswith(f'load_dataset("{name}", "mrpc"): it cannot be had: there is no folder ./{name}/mrpc here')
    assert "HF_HUB_OFFLINE is set" in first and "give the path of a folder" in first
    assert expected.startswith("Expected: a folder") and 'load_dataset("path/to/folder", "mrpc")' in fix
    assert caught.value.__cause__ is None and caught.value.__context__ is None


def test_without_a_network_a_data_set_is_refused_at_once(here: Path, no_host: list[str]) -> None:
    with pytest.raises(SourceError, match="cannot be found on the network"):
        load_dataset("glue", "mrpc")
    assert no_host == ["huggingface.co"]


def test_a_connection_that_fails_on_the_way_is_said_likewise(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach 'glue' on the Hub (ConnectTimeout)")

    monkeypatch.setattr("headstart.drop_in.datasets_by_name.why_out_of_reach", lambda: None)
    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(SourceError, match=r"the hub was not reached \(no answer\)") as caught:
        load_dataset("glue", "mrpc")
    assert caught.value.__context__ is None


def test_a_file_or_a_wrong_path_says_how_to_write_it(here: Path, no_host: list[str]) -> None:
    write(here / "data" / "reviews.tsv", "text\tlabel", "good\t1")
    with pytest.raises(SourceError, match=r'load_dataset\("csv", data_files="data/reviews\.tsv", sep="\\t"\)'):
        load_dataset("data/reviews.tsv")
    with pytest.raises(SourceError, match=r'\./dta: there is no such folder(.|\n)*Did you mean "data"'):
        load_dataset("./dta")
    assert no_host == []
