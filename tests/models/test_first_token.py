"""The last layer for the first token alone: the same answers and gradients, and all tokens where somebody looks."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from transformers import BertForSequenceClassification

from headstart.models.dropout import RandomKey, keyed_randomness
from headstart.models.speed import PARTS, speed_up
from headstart.models.swaps import attention as swaps_attention
from headstart.models.swaps.swap import watch
from small_families import FAMILIES, answers, build, copies_of, distance, make_batch

PART = "first_token"
WITH_PLACE = ("bert", "roberta", "distilbert", "electra", "mpnet", "deberta-v2")
ALONE = {name: name == PART for name in PARTS}
LENGTH = 20


def pair(family: str = "bert", **changes: Any) -> tuple[nn.Module, nn.Module]:
    """Give a model's own way, and the same model with this part alone."""
    plain, fast = copies_of(lambda: build(family, **changes))
    handle = speed_up(fast, precision="fp32", parts=ALONE)
    assert handle[PART].on and handle[PART].places == 1, handle
    return plain, fast


@contextmanager
def expect(is_cut: bool) -> Iterator[None]:
    with watch() as usage:
        yield
    assert bool(usage.used.get(PART)) == is_cut


@pytest.mark.parametrize("family", WITH_PLACE)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("padding", ["right", "left"])
def test_answers_and_gradients_are_the_same(family: str, training: bool, padding: str) -> None:
    found = []
    for model in pair(family):
        model.train(training)
        batch = make_batch(family, 3, LENGTH, padding)
        with expect(bool(found)), keyed_randomness(RandomKey(0, 1, [4, 5, 6]), torch.device("cpu"), model):
            found.append(answers(model, batch))
    assert distance(found[1], found[0]) < 1e-5


@pytest.mark.parametrize("family", WITH_PLACE)
def test_what_comes_after_attention_is_computed_for_one_token(family: str) -> None:
    _, fast = pair(family)
    widths = []
    linear = torch.nn.functional.linear

    def look(x: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        widths.append(x.shape[1] if x.ndim == 3 else 0)
        return linear(x, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "linear", look)
        fast(**make_batch(family))
    # The projection behind attention comes before the cut in two families.
    assert widths.count(1) == (2 if family in ("distilbert", "mpnet") else 3)


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(WITH_PLACE)))
def test_models_without_such_a_place_keep_their_way(family: str) -> None:
    handle = speed_up(build(family), precision="fp32", parts=ALONE)
    assert not handle[PART].on
    assert "ForSequenceClassification" in handle[PART].reason or "no place in the last layer" in handle[PART].reason


def test_a_class_of_the_users_own_may_read_other_tokens() -> None:
    class MeanForSequenceClassification(BertForSequenceClassification):
        pass

    model = MeanForSequenceClassification(build("bert").config)  # type: ignore[arg-type]
    assert "none of transformers'" in speed_up(model, precision="fp32")[PART].reason


def test_a_head_that_reads_more_is_found_by_the_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: nn.Module, hidden_states: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.dense(hidden_states.mean(1)))  # type: ignore[operator]

    model = build("bert")
    monkeypatch.setattr(type(model.bert.pooler), "forward", forward)  # type: ignore[union-attr]
    handle = speed_up(model, precision="fp32")
    assert "differs from the model's own way" in handle[PART].reason
    assert handle["norms"].on and not model._forward_pre_hooks and not model._forward_hooks


# Whoever looks sees all tokens


def hidden_by_argument(model: nn.Module) -> torch.Tensor:
    return model(**make_batch("bert"), output_hidden_states=True).hidden_states[-1]  # type: ignore[no-any-return]


def hidden_by_config(model: nn.Module) -> torch.Tensor:
    model.config.output_hidden_states = True  # type: ignore[union-attr]
    return model(**make_batch("bert")).hidden_states[-1]  # type: ignore[no-any-return]


def of_the_model_below(model: nn.Module) -> torch.Tensor:
    return model.bert(**make_batch("bert")).last_hidden_state  # type: ignore[no-any-return, operator, union-attr]


def in_another_thread(model: nn.Module) -> torch.Tensor:
    """While this one is inside the whole model."""
    seen: list[torch.Tensor] = []
    pooler = model.bert.pooler  # type: ignore[union-attr]
    forward = type(pooler).forward

    def meanwhile(self: nn.Module, hidden_states: torch.Tensor) -> torch.Tensor:
        if not seen and self is pooler:
            thread = threading.Thread(target=lambda: seen.append(of_the_model_below(model)))
            seen.append(hidden_states)  # not again inside the thread
            thread.start()
            thread.join()
        return forward(self, hidden_states)  # type: ignore[no-any-return]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(pooler), "forward", meanwhile)
        model(**make_batch("bert"))
    return seen[1]


def by_hook(model: nn.Module) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    model.bert.encoder.register_forward_hook(  # type: ignore[operator, union-attr]
        lambda module, inputs, output: seen.append(output.last_hidden_state)
    )
    model(**make_batch("bert"))
    return seen[0]


def by_hook_inside_the_layer(model: nn.Module) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    layer = model.bert.encoder.layer[-1].intermediate  # type: ignore[union-attr, index]
    layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model(**make_batch("bert"))
    return seen[0]


def by_global_hook(model: nn.Module) -> torch.Tensor:
    seen: list[torch.Tensor] = []

    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        if module is model.bert.encoder.layer[-1]:  # type: ignore[union-attr, index]
            seen.append(output)

    hook = register_module_forward_hook(look)
    model(**make_batch("bert"))
    hook.remove()
    return seen[0]


@pytest.mark.parametrize(
    "look",
    [
        hidden_by_argument,
        hidden_by_config,
        of_the_model_below,
        by_hook,
        by_hook_inside_the_layer,
        by_global_hook,
    ],
)
def test_who_looks_sees_all_tokens(look: Any) -> None:
    plain, fast = pair()
    with expect(False):
        found = look(fast)
    wanted = look(plain)
    assert found.shape == wanted.shape and found.shape[1] == LENGTH
    torch.testing.assert_close(found, wanted)


def test_the_config_asks_where_the_argument_is_none() -> None:
    models = pair("mpnet")
    for model in models:
        model.config.output_hidden_states = True  # type: ignore[union-attr]
    wanted, found = (model(**make_batch("mpnet"), output_hidden_states=None).hidden_states[-1] for model in models)
    torch.testing.assert_close(found, wanted)


def test_another_thread_sees_all_tokens() -> None:
    plain, fast = pair()
    torch.testing.assert_close(in_another_thread(fast), in_another_thread(plain))


def test_layers_that_are_computed_again_are_left_whole() -> None:
    plain, fast = pair()
    for model in (plain, fast):
        model.train()
        model.activation_checkpointing_enable()  # type: ignore[operator]
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    with expect(False):
        found = answers(fast, make_batch("bert"))
    assert distance(found, answers(plain, make_batch("bert"))) < 1e-5


def test_a_layer_that_is_no_longer_the_last_is_left_whole() -> None:
    for keep in ([0], [1, 0], [1, 1]):
        models = pair()
        for model in models:
            encoder: Any = model.base_model.encoder  # type: ignore[union-attr]
            encoder.layer = nn.ModuleList([encoder.layer[number] for number in keep])
        plain, fast = models
        with expect(False):
            found = answers(fast, make_batch("bert"))
        assert distance(found, answers(plain, make_batch("bert"))) < 1e-5


def test_a_call_that_fails_leaves_nothing_behind() -> None:
    plain, fast = pair()
    with pytest.raises(IndexError):
        fast(input_ids=torch.full((1, LENGTH), 10**6))
    torch.testing.assert_close(of_the_model_below(fast), of_the_model_below(plain))


def break_off(*given: Any, **named: Any) -> None:
    raise KeyboardInterrupt


def test_a_call_that_is_broken_off_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, fast = pair()
    for broken in ("pooler", "embeddings"):  # after and before the layers
        with monkeypatch.context() as patch:
            module: Any = fast.bert.get_submodule(broken)  # type: ignore[operator, union-attr]
            patch.setattr(type(module), "forward", break_off)
            with pytest.raises(KeyboardInterrupt):
                fast(**make_batch("bert"))
        with expect(False):
            found = of_the_model_below(fast)
        torch.testing.assert_close(found, of_the_model_below(plain))
    with expect(True):
        answers(fast, make_batch("bert"))


def test_threads_that_call_the_model_at_once_do_not_disturb_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    _, fast = pair()
    gate, seen = threading.Barrier(2, timeout=60), list[int]()
    embeddings: Any = type(fast.bert.embeddings)  # type: ignore[union-attr]
    pooler: Any = type(fast.bert.pooler)  # type: ignore[union-attr]
    embed, pool = embeddings.forward, pooler.forward

    def embed_in_step(*given: Any, **named: Any) -> Any:
        gate.wait()  # both are inside
        found = embed(*given, **named)
        gate.wait()
        return found

    def look(module: nn.Module, hidden_states: torch.Tensor) -> Any:
        seen.append(hidden_states.shape[1])
        return pool(module, hidden_states)

    monkeypatch.setattr(embeddings, "forward", embed_in_step)
    monkeypatch.setattr(pooler, "forward", look)
    threads = [threading.Thread(target=lambda: fast(**make_batch("bert"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1, 1]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_decides_for_itself(copied: Any) -> None:
    plain, fast = pair()
    other = copied(fast)
    fast.bert.encoder.register_forward_hook(lambda *seen: None)  # type: ignore[operator, union-attr]
    with expect(True):
        found = answers(other, make_batch("bert"))
    assert distance(found, answers(plain, make_batch("bert"))) < 1e-5
    with expect(False):
        answers(fast, make_batch("bert"))
    speed_up(other, precision="fp32", parts=dict.fromkeys(PARTS, False))
    assert not other._forward_pre_hooks and not other._forward_hooks
    assert not other.bert._forward_pre_hooks


def test_undo_takes_the_hooks_out_and_leaves_the_users() -> None:
    model = build("bert")
    calls: list[int] = []
    model.register_forward_hook(lambda *seen: calls.append(1))
    handle = speed_up(model, precision="fp32", parts=ALONE)
    handle.undo()
    calls.clear()
    with expect(False):
        model(**make_batch("bert"))
    assert calls == [1] and len(model._forward_hooks) == 1
    assert not model._forward_pre_hooks and not model._forward_hooks_always_called
    assert not model._forward_pre_hooks_with_kwargs and not model.bert._forward_pre_hooks


@pytest.mark.parametrize("family", ["bert", "distilbert"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("length", [1, 2, 40])
def test_with_all_parts_attention_answers_the_first_query(family: str, precision: str, length: int) -> None:
    """Where attention leaves the others out, nothing may come from what lies in memory there."""
    plain, fast = copies_of(lambda: build(family))
    handle = speed_up(fast, precision=precision)  # type: ignore[arg-type]
    assert handle[PART].on and handle["attention"].on
    asked: list[int | None] = []
    attend = swaps_attention.attend

    def look(*tensors: torch.Tensor, **options: Any) -> Any:
        asked.append(options["num_queries"])
        return attend(*tensors, **options)

    found = []
    for model in (plain, fast):
        model.train()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(swaps_attention, "attend", look)
            with keyed_randomness(RandomKey(0, 1, [4, 5, 6]), torch.device("cpu"), model):
                found.append(answers(model, make_batch(family, 3, length), precision))
    assert asked == [length, 1]
    assert distance(found[1], found[0]) < (1e-5 if precision == "fp32" else 0.05)
