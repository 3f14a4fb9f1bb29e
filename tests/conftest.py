"""What every test stands on: no network, a cache of its own, and a model small enough to train."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Read by the libraries when they are first imported; processes that tests start inherit them.
_SCRATCH = Path(tempfile.mkdtemp(prefix="headstart-tests-"))
os.environ["HEADSTART_CACHE"] = str(_SCRATCH / "cache")
os.environ["HF_HOME"] = str(_SCRATCH / "hub")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# A tiny model gains nothing from a second thread, and sums are the same on every machine.
os.environ["OMP_NUM_THREADS"] = "1"

WORDS = [
    "a",
    "an",
    "and",
    "the",
    "was",
    "is",
    "it",
    "this",
    "film",
    "plot",
    "cast",
    "story",
    "scene",
    "music",
    "ending",
    "of",
    "with",
    "very",
    "quite",
    "so",
    "in",
    "good",
    "great",
    "lovely",
    "fine",
    "bad",
    "dull",
    "awful",
    "weak",
    "red",
    "blue",
    "green",
    "apple",
    "river",
    "house",
    "not",
    "one",
    "two",
    "three",
]
_GOOD = ("good", "great", "lovely", "fine")
_BAD = ("bad", "dull", "awful", "weak")
_THINGS = ("film", "plot", "cast", "story", "scene", "music", "ending", "house")


def pytest_unconfigure() -> None:
    shutil.rmtree(_SCRATCH, ignore_errors=True)


def _refuse_network(connect: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(self: socket.socket, address: Any, *rest: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            host = str(address[0])
            if not (host in ("localhost", "::1", "0.0.0.0", "") or host.startswith("127.")):
                self.close()  # else the open socket is a second complaint, far from its cause
                raise RuntimeError(f"A test asked for a connection to {host}; tests run offline.")
        return connect(self, address, *rest)

    return guarded


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Refuse every connection that leaves this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", _refuse_network(socket.socket.connect))
        patch.setattr(socket.socket, "connect_ex", _refuse_network(socket.socket.connect_ex))
        yield


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Give torch back its one thread after a test in which a run has chosen another number."""
    yield
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a BERT of 2 layers and 32 numbers a token, with random weights and its own tokenizer.

    It has no head: loading it for a task makes a new one, as with a checkpoint from a hub.
    """
    import torch
    from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
    from tokenizers.models import WordPiece
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,!?"
    pieces = [*special, *WORDS, *letters, *(f"##{letter}" for letter in letters)]
    ids = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    backend = Tokenizer(WordPiece(ids, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    config = BertConfig(
        vocab_size=len(ids),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertModel(config)
    folder = tmp_path_factory.mktemp("tiny-model")
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=config.max_position_embeddings,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    ).save_pretrained(folder)
    return folder


def _sentences(num_rows: int) -> Iterator[tuple[str, str]]:
    """Make rows of several lengths whose label follows from one word; no text comes twice."""
    for index in range(num_rows):
        good = index % 2 == 0
        word = (_GOOD if good else _BAD)[index // 2 % 4]
        thing, other = _THINGS[index % 8], _THINGS[(index // 3 + 5) % 8]
        tail = (f"with the {other}", "and so is it", "", f"in this very {other} of the story")[index // 5 % 4]
        text = " ".join(f"the {thing} {index} was {word} {tail}".split())
        yield text, "positive" if good else "negative"


def _write_csv(path: Path, header: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> Path:
    import csv

    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path


@pytest.fixture
def tiny_csv(tmp_path: Path) -> Path:
    """Write 64 rows with the columns text and label: one word says which label it is."""
    return _write_csv(tmp_path / "tiny.csv", ("text", "label"), _sentences(64))


@pytest.fixture
def tiny_pair_csv(tmp_path: Path) -> Path:
    """Write 64 pairs (sentence1, sentence2, label): 1 where both praise or both blame."""

    def pairs() -> Iterator[tuple[str, str, str]]:
        rows = list(_sentences(64))
        for index, (text, label) in enumerate(rows):
            other, other_label = rows[(index * 7 + index // 4) % 64]
            yield text, other, str(int(label == other_label))

    return _write_csv(tmp_path / "pairs.csv", ("sentence1", "sentence2", "label"), pairs())
