"""How the forward pass of a training is run as a whole: compiled, or with activations that are computed again.

May import layers 0 and 1. Both change neither parameters nor their names, and are undone when the training ends:

    recompute_activations(model)      a layer keeps its input only, and runs again in the backward pass
    compile_forward(model)            torch.compile of the forward pass; evaluations run the model's own
"""

from __future__ import annotations

import contextlib
import importlib.util
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from headstart.errors import ModelError, RecipeError, TrainingError
from headstart.models.dropout import is_compiled, recompute_contexts
from headstart.models.speed import PARTS

__all__ = [
    "check_compiler",
    "compile_forward",
    "explain_compiler",
    "parts_in_the_way",
    "recompute_activations",
    "run_as_before",
    "uncompiled",
]

# What keeps more of a layer than its input, or asks layers for less than their whole output.
_KEEP_ACTIVATIONS = ("whole_layers", "first_token", "padding_free")


def recompute_activations(model: nn.Module) -> None:
    """Let each layer keep its input only, and run again in the backward pass (activation checkpointing).

    Transformers' own, without reentrant autograd. Dropout is drawn the same again, so losses and gradients have the
    same bits as without. Evaluations compute as before.

    Args:
        model: changed in place; `run_as_before` takes it back.

    Raises:
        ModelError: its layers cannot.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(vocab_size=100, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
        >>> model = BertModel(config)
        >>> recompute_activations(model)
        >>> model.is_activation_checkpointing
        True
        >>> run_as_before(model)

    Source: Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost.
    """
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise ModelError(
            f"train.gradient_checkpointing is true, but {type(model).__name__} has no layers that can run again.",
            "a model of transformers that supports gradient checkpointing.",
            "Set train.gradient_checkpointing=false; a smaller train.batch_size with more train.accumulation saves "
            "memory, too.",
        )
    whole: Any = model
    options = {"use_reentrant": False, "context_fn": recompute_contexts}
    whole.activation_checkpointing_enable(activation_checkpointing_kwargs=options)


def check_compiler(device: torch.device) -> None:
    """Make sure that `torch.compile` has what it needs here.

    Raises:
        RecipeError: there is no C++ compiler (CPU), or no Triton (GPU).
    """
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            raise RecipeError(
                "train.compile is true, but Triton is not installed, with which torch.compile makes code for GPUs.",
                "the package triton.",
                "Install a build of PyTorch that brings it, or set train.compile=false.",
            )
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise RecipeError(
            "train.compile is true, but there is no C++ compiler, which torch.compile needs on the CPU.",
            "g++ or clang++, on the PATH or named by the environment variable CXX.",
            "Install one (Debian and Ubuntu: apt install g++), or set train.compile=false.",
        ) from error


def compile_forward(model: nn.Module) -> None:
    """Let `torch.compile` make the forward pass of a training; nothing is compiled before the first call.

    Lengths and rows of a batch are symbols, so that other shapes need no other code. Its random numbers come from the
    global stream: they depend on seed, step and micro-batch, not on the row.

    Args:
        model: changed in place, its names stay; `run_as_before` takes it back.
    """
    with warnings.catch_warnings():
        # The compiler is imported here, and PyTorch warns of names that it uses itself.
        warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*torch.jit")
        model.compile(dynamic=True)


@contextlib.contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Run the model's own forward pass, as for an evaluation, which is too short to compile for.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> compile_forward(model)
        >>> with uncompiled(model):
        ...     is_compiled(model)
        False
        >>> is_compiled(model)
        True
    """
    compiled = model._compiled_call_impl
    model._compiled_call_impl = None
    try:
        yield
    finally:
        model._compiled_call_impl = compiled


@contextlib.contextmanager
def explain_compiler(model: nn.Module) -> Iterator[None]:
    """Say in one message that compiling has failed, and what to do.

    Raises:
        TrainingError: in place of the compiler's own errors.
    """
    if not is_compiled(model):
        yield
        return
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import CppCompileError, InductorError

    try:
        yield
    except (TorchDynamoException, InductorError, CppCompileError) as error:
        reason = str(error).strip().split("\n")[0][:300]
        raise TrainingError(
            f"torch.compile could not compile the model ({type(error).__name__}: {reason}).",
            "a model whose forward pass torch.compile takes.",
            "Set train.compile=false (with --resume --allow recipe, where the run has begun).",
        ) from error


def run_as_before(model: nn.Module) -> None:
    """Take back what `compile_forward` and `recompute_activations` have done to a model."""
    model._compiled_call_impl = None
    whole: Any = model
    if getattr(model, "is_activation_checkpointing", False):
        whole.activation_checkpointing_disable()


def parts_in_the_way(*, recompute: bool, compiles: bool, precision: str) -> dict[str, str]:
    """Name the parts of the fast path that cannot be on in such a training, and why.

    Args:
        recompute: activations are computed again.
        compiles: the forward pass is compiled.
        precision: of the matrix products.

    Example:
        >>> parts_in_the_way(recompute=True, compiles=False, precision="fp32")["whole_layers"]
        'activations are computed again (train.gradient_checkpointing)'
    """
    if compiles:
        reason = "torch.compile cannot follow the kernels (train.compile)"
        return dict.fromkeys((*PARTS, "lazy_rows"), reason)
    if precision == "fp16":
        return dict.fromkeys((*PARTS, "lazy_rows"), "products are in float16")
    if recompute:
        return dict.fromkeys(_KEEP_ACTIVATIONS, "activations are computed again (train.gradient_checkpointing)")
    return {}
