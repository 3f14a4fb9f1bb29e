"""Comparing a model that computes by other means with its own way, on a small batch.

May import layers 0 and 1. Two short rows, one of them padded, go through the model forward and backward, with dropout
on and keyed, so that both ways drop the same elements. How far bfloat16 may be off follows from how far the model's
own way is off in bfloat16:

    Probe(model) before anything is changed        compare(...) -> Difference        after each change
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from headstart.models.dropout import RandomKey, keyed_randomness

__all__ = ["Difference", "Probe"]

_LENGTH, _SHORT = 24, 9
# How far outputs or gradients may be off, relative to their norm; and any single parameter's gradient, relative to its
# norm or to a tenth of the usual one. In bfloat16 on top of twice what the model's own way is off.
_WHOLE = {"fp32": 1e-4, "bf16": 2e-2}
_SINGLE = {"fp32": 1e-2, "bf16": 2e-1}


@dataclass(frozen=True)
class Difference:
    """How far something is from the model's own way in float32, relative.

    Args:
        whole: the larger one of outputs and gradients.
        single: the largest of any parameter's gradient.
        where: name of that parameter.
    """

    whole: float
    single: float
    where: str = ""


class Probe:
    """Two short rows, one of them padded, through the model's own way and through others.

    Args:
        model: in its own way still; neither its gradients nor random streams nor statistics are changed.
        precision: what is compared with the model's own way in float32.
        with_head: compare what the whole model gives, not the hidden states below its head.
    """

    def __init__(self, model: nn.Module, precision: str, *, with_head: bool = False) -> None:
        self._model = model if with_head else getattr(model, "base_model", model)
        self._precision = precision
        self.obstacle = ""
        """Why there is nothing to compare with; empty where there is."""
        self.dtype = torch.float32
        """Of what the model's own way gives in this precision."""
        self.own = Difference(0.0, 0.0)
        """How far the model's own way in this precision is off."""
        try:
            self._reference = self._run("fp32")
            self.dtype = self._reference[0].dtype
            if precision != "fp32":
                own = self._run(precision)
                self.dtype, self.own = own[0].dtype, self._distance(own)
        except Exception as error:  # a model that does not take token ids is not one to compare
            self.obstacle = f"the model does not answer a probe ({_short(error)})"

    def compare(self) -> tuple[Difference | None, str]:
        """Give how far the model is from its own way by now, and why that is too far; empty where it is not."""
        try:
            answer = self._run(self._precision)
            found = self._distance(answer)
        except Exception as error:  # whatever a model does with a change that does not fit it
            return None, f"the model fails with it ({_short(error)})"
        if answer[0].dtype != self.dtype:
            return found, f"gives {answer[0].dtype}, where the model gives {self.dtype}"
        whole = _WHOLE[self._precision] + 2 * self.own.whole
        single = _SINGLE[self._precision] + 2 * self.own.single
        if not found.whole <= whole:  # NaN is too far
            return found, f"differs from the model's own way by {found.whole:.1e} on a probe"
        if not found.single <= single:
            return found, f"the gradient of {found.where} differs by {found.single:.1e} on a probe"
        return found, ""

    def _run(self, precision: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Give what the model makes of the probe's tokens, and the gradient of each parameter."""
        base = self._model
        named = {name: parameter for name, parameter in base.named_parameters() if parameter.requires_grad}
        modes = {module: module.training for module in base.modules()}
        base.train(not any(getattr(module, "track_running_stats", False) for module in base.modules()))
        try:
            batch, seen = _probe_batch(base)
            key, device = RandomKey(seed=0, step=0, row_ids=[0, 1]), next(base.parameters()).device
            batch, seen = {name: tensor.to(device) for name, tensor in batch.items()}, seen.to(device)
            with keyed_randomness(key, device, base), torch.enable_grad():
                with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                    hidden = base(**batch)[0]
                hidden = hidden[seen] if hidden.ndim == 3 and hidden.shape[:2] == seen.shape else hidden
                places = torch.arange(hidden.numel(), dtype=torch.float32, device=device)
                direction = torch.cos(places).view_as(hidden)
                # Not backward(): hooks of the user that wait for gradients would take these for real ones.
                # There are none where all that made the hidden states is frozen.
                found = (
                    torch.autograd.grad((hidden.float() * direction).sum(), list(named.values()), allow_unused=True)
                    if hidden.requires_grad
                    else (None,) * len(named)
                )
            gradients = zip(named, found, strict=True)
            return hidden.detach(), {name: grad.float() for name, grad in gradients if grad is not None}
        finally:
            for module, mode in modes.items():
                module.training = mode

    def _distance(self, found: tuple[torch.Tensor, dict[str, torch.Tensor]]) -> Difference:
        hidden, gradients = self._reference
        if found[0].shape != hidden.shape or found[1].keys() != gradients.keys():
            return Difference(math.inf, math.inf)
        errors = {name: float((found[1][name] - grad).norm()) for name, grad in gradients.items()}
        norms = {name: float(grad.norm()) for name, grad in gradients.items()}
        total = math.hypot(*norms.values())
        usual = total / math.sqrt(max(1, len(norms)))
        singles = {name: _ratio(error, max(norms[name], usual / 10)) for name, error in errors.items()}
        where = max(singles, key=_rank(singles), default="")
        of_hidden = _ratio(float((found[0].float() - hidden).norm()), float(hidden.norm()))
        of_gradients = _ratio(math.hypot(*errors.values()), total)
        worst = max(of_hidden, of_gradients) if not math.isnan(of_hidden + of_gradients) else math.nan
        return Difference(worst, singles.get(where, 0.0), where)


def _rank(numbers: dict[str, float]) -> Callable[[str], float]:
    """Give a key by which NaN is the largest number."""
    return lambda name: math.inf if math.isnan(numbers[name]) else numbers[name]


def _ratio(error: float, norm: float) -> float:
    if error == 0.0:
        return 0.0
    return error / norm if norm else math.inf


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0][:160]


def _probe_batch(model: nn.Module) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Give token ids and mask of two rows, and where there are tokens."""
    config = model.config
    # Positions of RoBERTa and its like begin behind that of padding.
    length = max(2, min(_LENGTH, int(getattr(config, "max_position_embeddings", None) or _LENGTH) - 2))
    short = min(_SHORT, length - 1)
    numbers = torch.arange(2 * length).view(2, length)
    vocabulary = int(config.vocab_size)  # type: ignore[union-attr, arg-type]
    ids = 5 + numbers * 7 % (vocabulary - 5) if vocabulary > 5 else numbers % vocabulary
    mask = torch.ones((2, length), dtype=torch.int64)
    mask[1, short:] = 0
    ids = torch.where(mask.bool(), ids, getattr(config, "pad_token_id", None) or 0)
    batch = {"input_ids": ids, "attention_mask": mask}
    if getattr(config, "is_encoder_decoder", False):
        batch["decoder_input_ids"] = ids
        batch["decoder_attention_mask"] = mask
    return batch, mask.bool()
