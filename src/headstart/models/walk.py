"""The modules of a model, in the order of `named_modules()` and in half of its time: steps of few rows feel it.

May import layers 0 and 1.
"""

from __future__ import annotations

from torch import nn

__all__ = ["names_of", "parameters_of"]


def names_of(model: nn.Module) -> dict[nn.Module, str]:
    """Give every module of a model and its name, each once.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.GELU()))
        >>> list(names_of(model).values())
        ['', '0', '1', '1.0']
    """
    names: dict[nn.Module, str] = {}
    _walk(model, "", names)
    return names


def _walk(module: nn.Module, name: str, names: dict[nn.Module, str]) -> None:
    names[module] = name
    for key, child in module._modules.items():
        if child is not None and child not in names:
            _walk(child, f"{name}.{key}" if name else key, names)


def parameters_of(model: nn.Module) -> list[nn.Parameter]:
    """Give what `model.parameters()` gives.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> [len(parameters_of(model)) for model in (layer, nn.Sequential(layer, layer))]
        [2, 2]
    """
    found = [parameter for module in names_of(model) for parameter in module._parameters.values()]
    return list(dict.fromkeys(parameter for parameter in found if parameter is not None))
