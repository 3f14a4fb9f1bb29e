"""Where in a model each parameter stands: the embeddings, a layer, or the head.

May import layers 0 and 1. The layers of a model of transformers are the entries of one `nn.ModuleList`:

    embeddings 0  ->  layers 1 ... N  ->  head N + 1 (pooler, last norm, classifier)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from headstart.errors import ModelError

__all__ = ["Layers", "find_layers", "layer_factors"]


@dataclass(frozen=True)
class Layers:
    """The layers of a model.

    Args:
        depths: name of each parameter to its place: 0 is embeddings, 1 to `count` a layer, `count` + 1 the head.
        count: layers that have weights of their own.
        num_passes: layers that a token goes through; more than `count` where layers share their weights (ALBERT).
    """

    depths: Mapping[str, int]
    count: int
    num_passes: int

    @property
    def head(self) -> int:
        """The place of the head."""
        return self.count + 1


def find_layers(model: nn.Module) -> Layers:
    """Find the layers of a model, and what lies below and above them.

    What is registered before the layers, and every `nn.Embedding`, counts as embeddings; what is registered behind them
    (pooler, last norm), and what lies outside of the base model, as the head. What DeBERTa's encoder has beside its
    layers says where tokens are to each other, and counts as embeddings.

    Args:
        model: of transformers.

    Raises:
        ModelError: it has no stack of layers, or several (an encoder and a decoder).

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(vocab_size=8, hidden_size=4, num_hidden_layers=2, num_attention_heads=1)
        >>> layers = find_layers(BertForSequenceClassification(config))
        >>> names = ("embeddings.word_embeddings", "encoder.layer.1.output.dense", "pooler.dense")
        >>> layers.count, [layers.depths[f"bert.{name}.weight"] for name in names]
        (2, [0, 2, 3])
    """
    base = getattr(model, "base_model", model)
    config = getattr(model, "config", None)
    passes = getattr(config, "num_hidden_layers", None)
    own = getattr(config, "num_hidden_groups", None) or passes
    stacks = {
        name: module for name, module in _outermost_lists(base).items() if passes is not None and len(module) == own
    }
    if len(stacks) != 1 or getattr(config, "is_encoder_decoder", False):
        found = f"{len(stacks)} stacks of layers ({', '.join(sorted(stacks))})" if stacks else "no stack of layers"
        raise ModelError(
            f"{type(model).__name__} has {found}, so it is not known which parameters belong to which layer.",
            "one stack of layers, as BERT and its kin have.",
            'Leave out optim.layer_decay and model.unfreeze_every, and freeze by names: model.freeze=["PATTERN"].',
        )
    stack, module = next(iter(stacks.items()))
    parent = base.get_submodule(stack.rpartition(".")[0])
    places = {id(parameter): depth + 1 for depth, layer in enumerate(module) for parameter in layer.parameters()}
    below: list[nn.Module] = [one for one in base.modules() if isinstance(one, nn.Embedding)]
    if "Deberta" in type(parent).__name__:  # of a sharded model the class has another name, which holds this one
        below += [child for child in parent.children() if child is not module]
    for one in below:
        for parameter in one.parameters():
            places.setdefault(id(parameter), 0)
    is_behind = False
    for parameter in base.parameters():
        is_behind |= places.get(id(parameter), 0) > 0
        places.setdefault(id(parameter), len(module) + 1 if is_behind else 0)
    depths = {name: places.get(id(parameter), len(module) + 1) for name, parameter in model.named_parameters()}
    return Layers(depths, len(module), int(passes or len(module)))


def _outermost_lists(base: nn.Module) -> dict[str, nn.ModuleList]:
    """Give the lists of modules that lie in no other list, by name."""
    found: dict[str, nn.ModuleList] = {}
    for name, module in base.named_modules():
        if isinstance(module, nn.ModuleList) and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = module
    return found


def layer_factors(model: nn.Module, decay: float) -> dict[str, float]:
    """Give the factor on the learning rate of each parameter: 1 for the head, `decay` of that for each layer below.

    Args:
        model: of transformers.
        decay: the factor from one layer to the one below, and from the lowest to the embeddings.

    Raises:
        ModelError: its layers cannot be found.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(vocab_size=8, hidden_size=4, num_hidden_layers=2, num_attention_heads=1)
        >>> factors = layer_factors(BertForSequenceClassification(config), 0.5)
        >>> names = ("bert.embeddings.word_embeddings", "bert.encoder.layer.1.output.dense", "classifier")
        >>> [factors[f"{name}.weight"] for name in names]
        [0.125, 0.5, 1.0]

    Source: Howard & Ruder 2018, Universal Language Model Fine-tuning (discriminative fine-tuning); Sun et al. 2019, How
    to Fine-Tune BERT; Clark et al. 2020, ELECTRA.
    """
    layers = find_layers(model)
    return {name: decay ** (layers.head - depth) for name, depth in layers.depths.items()}
