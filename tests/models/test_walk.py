"""The modules of a model, against PyTorch's own walk."""

from __future__ import annotations

import pytest
from torch import nn

from headstart.models.walk import names_of, parameters_of
from small_families import build


def shared() -> nn.Module:
    layer = nn.Linear(2, 2)
    model = nn.Sequential(layer, nn.Sequential(layer, nn.GELU()), nn.ModuleDict({"inner": nn.Linear(2, 2)}))
    model.register_module("missing", None)
    model[2]["inner"].weight = layer.weight
    model[2]["inner"].bias = None
    return model


@pytest.mark.parametrize("make", [shared, lambda: build("bert"), lambda: build("albert"), lambda: build("gpt2")])
def test_what_pytorch_finds_in_its_order(make: object) -> None:
    model = make()  # type: ignore[operator]
    assert [(name, module) for module, name in names_of(model).items()] == list(model.named_modules())
    assert [id(one) for one in parameters_of(model)] == [id(one) for one in model.parameters()]
