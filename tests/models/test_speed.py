"""What `speed_up` does to a model, what it leaves alone, and what it says about it."""

from __future__ import annotations

import copy
import gc
import io
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from headstart.errors import ModelError
from headstart.models import kernels, speed
from headstart.models.dropout import RandomKey, keyed_randomness
from headstart.models.probe import Probe
from headstart.models.speed import PARTS, speed_up, speed_up_of
from headstart.models.swaps.swap import OWN_ATTENTION, Swap
from small_families import PACKS, answers, build, copies_of, distance, make_batch

BATCH = make_batch("bert")


def swapped(model: nn.Module, part: str | None = None) -> list[str]:
    """Name the modules that compute by a swap."""
    found = []
    for name, module in model.named_modules():
        forward = module.__dict__.get("forward")
        while isinstance(forward, Swap):
            if part in (None, forward.part):
                found.append(name)
            forward = forward.before
    return found


def fast_bert(precision: str = "fp32", **changes: Any) -> tuple[nn.Module, nn.Module]:
    plain, fast = copies_of(lambda: build("bert", **changes))
    handle = speed_up(fast, precision=precision)  # type: ignore[arg-type]
    if handle.copies is not None:
        handle.copies.kept_by_optimizer = True
    return plain, fast


def test_on_a_gpu_the_parts_for_the_cpu_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(speed, "_device_type", lambda model: "cuda")
    monkeypatch.setattr(speed, "has_fast_bfloat16", lambda device_type: bool(asked.append(device_type)))
    handle = speed_up(build("bert"), parts={"gelu": False})
    assert asked == ["cuda"] and handle.precision == "fp32"
    reasons = {part.name: part.reason for part in handle.parts if part.name not in ("attention", "first_token")}
    assert reasons.pop("gelu") == "switched off"
    assert set(reasons.values()) == {"it is for the CPU"}
    assert handle["first_token"].on


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", PARTS)
def test_each_switch_leaves_its_part_out_and_the_others_in(name: str, precision: str) -> None:
    model = build("bert")
    handle = speed_up(model, precision=precision, parts={name: False})  # type: ignore[arg-type]
    assert [part.name for part in handle.parts] == list(PARTS)
    assert not handle[name].on and handle[name].reason == "switched off" and handle[name].places == 0
    assert not swapped(model, name)
    assert (OWN_ATTENTION in model.__dict__) == (name != "attention")
    of_bfloat16 = ("bf16_weights", "packed_weights", "joined_qkv", "whole_layers", "padding_free")
    needs = {"bf16": ("onednn_float32",), "fp32": of_bfloat16}[precision]
    needs += ("packed_weights", "joined_qkv") if name == "bf16_weights" else ()
    of_a_layer = ("bf16_weights", "joined_qkv", "attention", "norms", "gelu")
    needs += ("whole_layers",) if name in of_a_layer else ()
    needs += ("padding_free",) if name in (*of_a_layer, "whole_layers", "first_token") else ()
    needs += () if PACKS else ("packed_weights",)
    assert {part.name for part in handle.parts if not part.on} == {name, *needs}
    assert (handle.copies is None) == (precision == "fp32" or name == "bf16_weights")


def test_without_onednn_no_product_goes_through_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from headstart.models.swaps import norms, products

    model = build("bert")
    speed_up(model, precision="fp32", parts={"onednn_float32": False})

    def fail(*operands: object) -> None:
        raise AssertionError("a product went through oneDNN")

    monkeypatch.setattr(products, "multiply", fail)
    monkeypatch.setattr(norms, "multiply", fail)
    answers(model, BATCH)


def test_a_part_that_does_not_exist_is_named_with_the_nearest() -> None:
    with pytest.raises(ModelError, match=r'(?s)there is no part "norm".*Did you mean "norms"'):
        speed_up(build("bert"), parts={"norm": False})


@pytest.mark.parametrize("name", ["optimizer_pass", "lazy_rows"])
def test_parts_of_the_optimizer_are_switched_where_it_is_built(name: str) -> None:
    with pytest.raises(ModelError, match=rf'(?s)no part "{name}".*build_optimizer'):
        speed_up(build("bert"), parts={name: False})


def test_places_are_the_modules_that_are_really_computed() -> None:
    handle = speed_up(build("bert"), precision="bf16")
    # 2 layers of 6 linear layers, the pooler and the head; 2 norms a layer and that of the embeddings, 2 blocks a layer
    assert {part.name: part.places for part in handle.parts} == {
        "bf16_weights": 14,
        "packed_weights": 9 if PACKS else 0,  # the head is too small, and query, key and value are one
        "onednn_float32": 0,
        "joined_qkv": 6,
        "attention": 2,
        "norms": 9,
        "gelu": 2,
        "dropout": 8,
        "whole_layers": 2,
        "first_token": 1,
        "padding_free": 2,
    }
    assert all(part.difference is not None and part.difference < 0.1 for part in handle.parts if part.on)


def test_undo_gives_the_model_back_as_it_was() -> None:
    plain, fast = fast_bert("bf16")
    handle = speed_up_of(fast)
    assert handle is not None and handle.copies is not None
    handle.undo()
    assert not swapped(fast) and not any("forward" in module.__dict__ for module in fast.modules())
    assert fast.config._attn_implementation == "sdpa" and OWN_ATTENTION not in fast.__dict__  # type: ignore[union-attr]
    assert not any(part.on for part in handle.parts) and not handle.copies.kept_by_optimizer
    assert speed_up_of(fast) is None
    for precision in ("fp32", "bf16"):
        found, wanted = answers(fast, BATCH, precision), answers(plain, BATCH, precision)
        assert torch.equal(found[0], wanted[0])
        assert all(torch.equal(found[1][name], wanted[1][name]) for name in wanted[1])
    handle.undo()  # again, and after somebody else has sped it up
    other = speed_up(fast, precision="fp32")
    handle.undo()
    assert other["norms"].on and swapped(fast, "norms")


def test_a_second_time_takes_the_place_of_the_first() -> None:
    plain, fast = fast_bert("bf16")
    first = speed_up_of(fast)
    second = speed_up(fast, precision="fp32", parts={"gelu": False})
    assert first is not None and not any(part.on for part in first.parts)
    assert not swapped(fast, "bf16_weights") and not swapped(fast, "gelu")
    assert len(swapped(fast, "norms")) == second["norms"].places
    assert distance(answers(fast, BATCH), answers(plain, BATCH)) < 1e-5
    second.undo()
    assert not swapped(fast) and fast.config._attn_implementation == "sdpa"  # type: ignore[union-attr]


def test_names_parameters_and_files_stay_as_they_were(tmp_path: Path) -> None:
    plain, fast = fast_bert("bf16")
    wanted, found = plain.state_dict(), fast.state_dict()
    assert list(found) == list(wanted) and all(torch.equal(found[name], wanted[name]) for name in wanted)
    fast.save_pretrained(tmp_path)  # type: ignore[operator]
    assert "headstart" not in (tmp_path / "config.json").read_text()
    loaded = type(plain).from_pretrained(tmp_path)  # type: ignore[attr-defined]
    assert loaded.config._attn_implementation == "sdpa" and not swapped(loaded)
    assert torch.equal(answers(loaded, BATCH)[0], answers(plain, BATCH)[0])


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_copy_computes_with_its_own_weights(way: str, precision: str) -> None:
    _, fast = fast_bert(precision)
    before = answers(fast, BATCH, precision)
    if way == "deepcopy":
        other = copy.deepcopy(fast)
    else:
        file = io.BytesIO()
        torch.save(fast, file)
        other = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    assert swapped(other) == swapped(fast) and speed_up_of(other) is None
    assert distance(answers(other, BATCH, precision), before) < {"fp32": 1e-6, "bf16": 3e-2}[precision]
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert float(answers(other, BATCH, precision)[0].abs().max()) == 0.0
    assert torch.equal(answers(fast, BATCH, precision)[0], before[0])
    own = speed_up(other, precision=precision)  # type: ignore[arg-type]
    own.undo()
    assert not swapped(other) and other.config._attn_implementation == "sdpa"
    assert swapped(fast) and fast.config._attn_implementation == "headstart"  # type: ignore[union-attr]


def test_a_model_that_nobody_uses_any_more_is_forgotten() -> None:
    model = build("bert")
    speed_up(model, precision="bf16")
    answers(model, BATCH, "bf16")
    seen = weakref.ref(model)
    del model
    gc.collect()
    assert seen() is None


def test_hooks_of_the_user_are_called_with_every_module() -> None:
    plain, fast = fast_bert("bf16")
    calls: dict[str, list[str]] = {"plain": [], "fast": []}
    for kind, model in (("plain", plain), ("fast", fast)):
        for name, module in model.named_modules():
            module.register_forward_hook(lambda m, i, o, kind=kind, name=name: calls[kind].append(name))
            if "query" in name:
                module.register_forward_pre_hook(lambda m, inputs: (inputs[0] * 2,))
    found, wanted = answers(fast, BATCH, "bf16"), answers(plain, BATCH, "bf16")
    assert calls["fast"] == calls["plain"]
    assert distance(found, wanted) < 2e-2


def test_hooks_that_were_there_before_change_what_they_change() -> None:
    plain, fast = copies_of(lambda: build("bert"))
    for model in (plain, fast):
        for name, module in model.named_modules():
            if name.endswith("dense"):
                module.register_forward_pre_hook(lambda m, inputs: (inputs[0] * 2,))
    speed_up(fast, precision="fp32")
    assert distance(answers(fast, BATCH), answers(plain, BATCH)) < 1e-5


class Adapted(nn.Linear):
    """A linear layer that computes something else, as adapters do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + x.mean(-1, keepdim=True)


def test_a_layer_of_another_class_is_left_alone() -> None:
    plain, fast = copies_of(lambda: build("bert"))
    for model in (plain, fast):
        for module in list(model.modules()):
            for name, child in module.named_children():
                if name in ("dense", "value"):
                    adapted = Adapted(child.in_features, child.out_features)  # type: ignore[arg-type]
                    adapted.load_state_dict(child.state_dict())
                    setattr(module, name, adapted)
    handle = speed_up(fast, precision="bf16")
    assert handle.copies is not None
    handle.copies.kept_by_optimizer = True
    assert not any(name.endswith(("dense", "value")) for name in swapped(fast, "bf16_weights"))
    assert handle["joined_qkv"].reason == "the model has no three linear layers of one input"
    assert distance(answers(fast, BATCH, "bf16"), answers(plain, BATCH, "bf16")) < 2e-2


def test_an_adapter_that_comes_later_is_used() -> None:
    plain, fast = fast_bert()
    for model in (plain, fast):
        block = model.get_submodule("bert.encoder.layer.0.output")
        adapted = Adapted(128, 64)
        adapted.load_state_dict(block.dense.state_dict())  # type: ignore[union-attr, operator]
        block.dense = adapted
    assert distance(answers(fast, BATCH), answers(plain, BATCH)) < 1e-5


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_frozen_weights_get_no_gradients(precision: str) -> None:
    plain, fast = copies_of(lambda: build("bert"))
    for model in (plain, fast):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("query" not in name and "LayerNorm.weight" not in name and "layer.0" not in name)
    handle = speed_up(fast, precision=precision)  # type: ignore[arg-type]
    if handle.copies is not None:
        handle.copies.kept_by_optimizer = True
    found, wanted = answers(fast, BATCH, precision), answers(plain, BATCH, precision)
    assert not any("query" in name for name in found[1])
    assert distance(found, wanted) < {"fp32": 1e-5, "bf16": 2e-2}[precision]


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        ({"hidden_size": 24, "intermediate_size": 40}, {"norms": "24", "attention": "12", "gelu": "40"}),
        ({"hidden_size": 40}, {"attention": "a head of 20 numbers is not a multiple of 16"}),
        ({"hidden_act": "relu"}, {"gelu": "the model has no GELU module"}),
        ({"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}, {}),
        ({"hidden_dropout_prob": 1.0, "attention_probs_dropout_prob": 1.0}, {}),
        ({"max_position_embeddings": 22}, {}),
        ({"attn_implementation": "eager"}, {"attention": "set to the attention eager"}),
    ],
    ids=lambda value: str(value)[:40] if "size" in str(value) or len(value) else None,
)
def test_sizes_that_do_not_fit_are_left_to_the_model(changes: dict[str, Any], reasons: dict[str, str]) -> None:
    plain, fast = copies_of(lambda: build("bert", **changes))
    handle = speed_up(fast, precision="fp32")
    for name, words in reasons.items():
        assert not handle[name].on and words in handle[name].reason
    for model in (plain, fast):
        model.train()
    found, wanted = [], []
    for answer, model in ((found, fast), (wanted, plain)):
        with keyed_randomness(RandomKey(0, 0, [5, 6, 7]), torch.device("cpu"), model):
            answer.extend(answers(model, BATCH))
    assert distance(tuple(found), tuple(wanted)) < 1e-5  # type: ignore[arg-type]


def test_a_part_that_computes_something_else_steps_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    from headstart.models.swaps import places

    def wrong(module: nn.Module, approximate: bool, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.gelu(x) * 1.5

    monkeypatch.setattr(places, "gelu_forward", wrong)
    plain, fast = fast_bert()
    handle = speed_up_of(fast)
    assert handle is not None and not handle["gelu"].on and "differs from the model's own way" in handle["gelu"].reason
    assert handle["dropout"].on and not swapped(fast, "gelu")
    assert distance(answers(fast, BATCH), answers(plain, BATCH)) < 1e-5


def test_a_wrong_gradient_of_one_small_parameter_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from headstart.models.swaps import norms

    right = norms.drop_add_norm_backward

    def wrong(*arguments: Any, **named: Any) -> Any:
        first, second, sums = right(*arguments, **named)
        return first, second, sums * torch.tensor([1.0, 1.0, 1.5])[:, None]

    monkeypatch.setattr(norms, "drop_add_norm_backward", wrong)
    handle = speed_up(build("bert"), precision="bf16")
    assert not handle["norms"].on and "dense.bias" in handle["norms"].reason


def test_a_part_that_fails_steps_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    from headstart.models.swaps import places

    def fail(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no such thing")

    monkeypatch.setattr(places, "dropout", fail)
    _, fast = fast_bert()
    handle = speed_up_of(fast)
    assert handle is not None and handle["dropout"].reason == "the model fails with it (RuntimeError: no such thing)"
    answers(fast, BATCH)


def test_without_numba_nothing_is_on_and_the_model_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "available", lambda: "numba is not installed")
    plain, fast = fast_bert("bf16")
    handle = speed_up_of(fast)
    assert handle is not None and {part.reason for part in handle.parts} == {"numba is not installed"}
    assert handle.copies is None and not swapped(fast)
    assert torch.equal(answers(fast, BATCH)[0], answers(plain, BATCH)[0])
    handle.undo()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda model: model.to(torch.bfloat16), "parameters are torch.bfloat16, not float32"),
        (lambda model: model.to("meta"), "the model is on meta"),
        (lambda model: nn.Linear(3, 3), "the model does not answer a probe"),
    ],
)
def test_models_of_another_kind_are_left_alone(change: Any, reason: str) -> None:
    model = change(build("bert"))
    handle = speed_up(model, precision="fp32")
    assert all(not part.on and reason in part.reason for part in handle.parts)
    assert not swapped(model)


def test_a_model_that_changes_its_dtype_later_computes_by_its_own_way() -> None:
    plain, fast = fast_bert("bf16")
    plain, fast = plain.to(torch.bfloat16), fast.to(torch.bfloat16)
    with torch.no_grad():
        assert torch.allclose(fast(**BATCH)[0].float(), plain(**BATCH)[0].float(), atol=2e-2)


def test_a_probe_leaves_nothing_behind() -> None:
    model = build("bert").train()
    model.get_submodule("bert.encoder").eval()
    modes = [module.training for module in model.modules()]
    first = next(model.parameters())
    first.grad = torch.ones_like(first)
    fired: list[int] = []
    first.register_post_accumulate_grad_hook(lambda parameter: fired.append(1))
    state = torch.get_rng_state()
    assert Probe(model, "bf16").compare()[1] == ""
    assert torch.equal(torch.get_rng_state(), state) and not fired
    assert [module.training for module in model.modules()] == modes
    assert bool((first.grad == 1).all()) and all(p.grad is None for p in list(model.parameters())[1:])


def test_statistics_that_a_model_keeps_are_not_touched() -> None:
    model = build("bert")
    model.get_submodule("bert.encoder.layer.0.output").LayerNorm = nn.BatchNorm1d(24)
    before = copy.deepcopy(dict(model.named_buffers()))
    speed_up(model, precision="fp32")
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())


def test_a_second_derivative_is_refused_not_wrong() -> None:
    _, fast = fast_bert()
    embedded = fast.get_input_embeddings()(BATCH["input_ids"]).detach().requires_grad_()  # type: ignore[operator]
    logits = fast(inputs_embeds=embedded, attention_mask=BATCH["attention_mask"])[0]
    (slope,) = torch.autograd.grad(logits.sum(), embedded, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable"):
        slope.square().sum().backward()


def test_a_handle_is_read_by_part() -> None:
    handle = speed_up(build("bert"), precision="fp32", parts={"gelu": False})
    assert "gelu: off, switched off" in repr(handle)
    assert f"attention: in {handle['attention'].places} places" in repr(handle)
    with pytest.raises(KeyError, match=r'no part "atention".*attention'):
        handle["atention"]


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_autocast_is_the_precision_of_the_handle(precision: Any, dtype: torch.dtype) -> None:
    model = build("bert")
    handle = speed_up(model, precision=precision, parts=dict.fromkeys(PARTS, False))
    with handle.autocast(), torch.no_grad():
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == dtype
