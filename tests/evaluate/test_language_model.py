"""Perplexity of a tiny causal model."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from headstart import evaluate
from headstart.errors import DataError, HeadstartWarning, ModelError, RecipeError
from headstart.evaluate import language_model

WORDS = ["<s>", "<unk>", "the", "cat", "sat", "on", "a", "mat"]
TEXTS = ["the cat sat", "a mat", "on a cat sat the mat on", "mat"]


def save_model(folder: Path, **special_tokens: str) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=8, n_positions=12, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
        GPT2LMHeadModel(config).save_pretrained(folder)
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **special_tokens).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_model(tmp_path_factory.mktemp("gpt"), bos_token="<s>"))


def by_hand(model_dir: str, text: str, start: bool = True, max_length: int | None = None) -> float:
    model = GPT2LMHeadModel.from_pretrained(model_dir).eval()
    ids = ([0] if start else []) + [WORDS.index(word) for word in text.split()]
    ids = ids[:max_length]
    with torch.no_grad():
        chances = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    surprise = [-float(chances[place, ids[place + 1]]) for place in range(len(ids) - 1)]
    return math.exp(sum(surprise) / len(surprise))


def compute(model_dir: str, texts: list[str] = TEXTS, **options: Any) -> dict[str, Any]:
    scores = evaluate.load("perplexity", module_type="metric").compute(
        predictions=texts, model_id=model_dir, device="cpu", **options
    )
    assert scores is not None
    return scores


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_each_text_counts_alone_whatever_stands_beside_it(
    model_dir: str, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    real = language_model._batch_perplexities

    def counted(model: Any, rows: Any) -> list[float]:
        sizes.append(len(rows))
        return real(model, rows)

    monkeypatch.setattr(language_model, "_batch_perplexities", counted)
    scores = compute(model_dir, batch_size=batch_size)
    expected = [by_hand(model_dir, text) for text in TEXTS]
    assert scores["perplexities"] == pytest.approx(expected, rel=1e-5)
    assert scores["mean_perplexity"] == pytest.approx(sum(expected) / len(expected), rel=1e-5)
    assert max(sizes) == min(batch_size, 4) and sum(sizes) == 4


def test_the_start_token_may_be_left_out(model_dir: str) -> None:
    scores = compute(model_dir, TEXTS[:3], add_start_token=False)
    assert scores["perplexities"] == pytest.approx([by_hand(model_dir, text, start=False) for text in TEXTS[:3]])
    with pytest.raises(DataError, match="row 3 has too few tokens"):
        compute(model_dir, add_start_token=False)
    with pytest.raises(DataError, match="row 0 has too few tokens"):
        compute(model_dir, [""])


def test_a_length_cuts_and_a_long_text_asks_for_one(model_dir: str) -> None:
    scores = compute(model_dir, max_length=3)
    assert scores["perplexities"] == pytest.approx([by_hand(model_dir, text, max_length=3) for text in TEXTS])
    long = [" ".join(["cat"] * 12)]
    with pytest.raises(DataError, match=r"(?s)row 0 is longer than the 12 tokens.*max_length=12"):
        compute(model_dir, long)
    assert compute(model_dir, long, max_length=12)["mean_perplexity"] > 1
    assert compute(model_dir, long, add_start_token=False)["mean_perplexity"] > 1


def test_a_tokenizer_without_a_start_token_says_so(tmp_path: Path) -> None:
    model_dir = str(save_model(tmp_path))
    with pytest.warns(HeadstartWarning, match="no start token"):
        scores = compute(model_dir, TEXTS[:2])
    assert scores["perplexities"] == pytest.approx([by_hand(model_dir, text, start=False) for text in TEXTS[:2]])
    assert compute(model_dir, TEXTS[:2], add_start_token=False) == scores


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["gpu", "cuda"])
def test_a_device_that_is_not_there(model_dir: str, device: str) -> None:
    with pytest.raises(RecipeError, match="no GPU"):
        evaluate.load("perplexity").compute(predictions=["a"], model_id=model_dir, device=device)


def test_a_model_without_a_trained_head_is_refused(model_dir: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no trained head|cannot be loaded"):
        compute(str(tiny_model_dir))
    with pytest.raises(ModelError, match="no config"):
        compute(str(tmp_path))


def test_no_code_of_a_checkpoint_is_run(model_dir: str, tmp_path: Path) -> None:
    folder = save_model(tmp_path, bos_token="<s>")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text("raise SystemExit('it was run')")
    with pytest.raises(ModelError, match="cannot be loaded"):
        compute(str(folder))
