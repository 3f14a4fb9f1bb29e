"""bfloat16 copies of float32 weights, for the matrix products.

May import layers 0 and 1. A parameter is the float32 master and stays what a checkpoint and a user see. Its copy is
what the products read, so that no step casts every weight again. `headstart.build_optimizer` writes both in one pass;
a change from elsewhere (a checkpoint that is loaded) is seen by the parameter's version, and the copy made anew.
Changes through `parameter.data` have no version: `refresh` is for those.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.nn import Parameter

from headstart.models.packed_weights import PackedWeight, pack_all

__all__ = ["WorkingCopies"]


class WorkingCopies:
    """The copies of one model's weights.

    A copy of this object, by `copy.deepcopy` or pickled, has working copies of its own, which no optimizer keeps yet.

    Args:
        groups: parameters of modules; those of one group lie one after the other in memory, as one matrix with all
            their rows.

    Attributes:
        packs: whether matrices are laid out as oneDNN multiplies with them, where it can be done.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2, 3))
        >>> copies = WorkingCopies([[weight]])
        >>> copies.of(weight).dtype
        torch.bfloat16
    """

    def __init__(self, groups: Iterable[Sequence[torch.Tensor]]) -> None:
        self._groups = [list(group) for group in groups]
        self._allocate()

    def _allocate(self) -> None:
        self.kept_by_optimizer = False
        """Whether an optimizer writes the copies together with the weights."""
        self._kept: set[int] | None = None
        self._tensors: dict[Any, torch.Tensor] = {}
        self.tensors: Mapping[Parameter, torch.Tensor] = self._tensors
        """The copy of each parameter, as an optimizer writes it."""
        self._joined: dict[tuple[int, ...], torch.Tensor] = {}
        # By id, because a tensor's own hash takes longer than all else; the groups keep these parameters.
        self._seen: dict[int, tuple[int, int]] = {}
        self._packed: dict[tuple[int, ...], PackedWeight | None] = {}
        self._stale: set[tuple[int, ...]] = set()
        self.packs = False
        for group in self._groups:
            rows = [parameter.shape[0] for parameter in group]
            joined = torch.empty((sum(rows), *group[0].shape[1:]), dtype=torch.bfloat16)
            self._joined[tuple(id(parameter) for parameter in group)] = joined
            for parameter, part in zip(group, joined.split(rows), strict=True):
                # Not a view, whose changes autograd would count as changes of its neighbours.
                own = torch.empty(0, dtype=torch.bfloat16)
                own.set_(joined.untyped_storage(), part.storage_offset(), part.shape, part.stride())
                self._tensors[parameter] = own

    def __getstate__(self) -> dict[str, Any]:
        return {"groups": self._groups}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._groups = state["groups"]
        self._allocate()

    def keep(self, parameters: Iterable[torch.Tensor]) -> None:
        """Say that an optimizer writes the copies of these parameters, and of no others, together with them."""
        self.kept_by_optimizer, self._kept = True, set(map(id, parameters))

    def covers(self, *parameters: torch.Tensor | None) -> bool:
        """Say whether there are copies of these parameters, written by an optimizer, or of what nobody trains."""
        if not self.kept_by_optimizer:
            return False
        for parameter in parameters:
            if parameter is None:
                continue
            # Another optimizer may change it, and a fused one leaves its version as it was.
            if parameter.requires_grad and self._kept is not None and id(parameter) not in self._kept:
                return False
            # One that is where it was is also what it was.
            if self._seen.get(id(parameter)) != (parameter._version, parameter.data_ptr()):
                copy = self._tensors.get(parameter)
                if copy is None or parameter.dtype != torch.float32 or parameter.device != copy.device:
                    return False
        return True

    def of(self, *parameters: torch.Tensor) -> torch.Tensor:
        """Give the copy of a parameter, or of several that follow one another in a group as one matrix."""
        for parameter in parameters:
            seen = parameter._version, parameter.data_ptr()
            if self._seen.get(id(parameter)) != seen:
                with torch.no_grad():
                    self._tensors[parameter].copy_(parameter)
                self._seen[id(parameter)] = seen
                self._stale.update(key for key in self._packed if id(parameter) in key)
        key = tuple(map(id, parameters))
        if key not in self._joined:
            self._joined[key] = self._part_of_group(key)
        return self._joined[key]

    def _part_of_group(self, key: tuple[int, ...]) -> torch.Tensor:
        """Give some lines of a group's matrix."""
        (group,) = (group for group in self._groups if any(id(parameter) == key[0] for parameter in group))
        ids, rows = [id(parameter) for parameter in group], [parameter.shape[0] for parameter in group]
        first = ids.index(key[0])
        end = first + len(key)
        if tuple(ids[first:end]) != key:
            raise ValueError("These parameters do not follow one another in a group.")
        return self._joined[tuple(ids)][sum(rows[:first]) : sum(rows[:end])]

    def operands(self, *parameters: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Give what `of` gives as products take it: forward for x weight', backward for grad weight."""
        weight = self.of(*parameters)
        if not self.packs:
            return weight, weight.t()
        key = tuple(map(id, parameters))
        if key not in self._packed:
            self._packed[key] = PackedWeight.of(weight)
        if key in self._stale:
            pack_all([packed for packed in map(self._packed.get, self._stale) if packed is not None])
            self._stale.clear()
        packed = self._packed[key]
        return (weight, weight.t()) if packed is None else (packed.forward, packed.backward)

    @property
    def num_packed(self) -> int:
        """Matrices that have been laid out as oneDNN multiplies with them."""
        return sum(packed is not None for packed in self._packed.values())

    @property
    def packing_obstacle(self) -> str:
        """Say why no matrix has been laid out so; empty where one has."""
        if self.num_packed:
            return ""
        if any(PackedWeight.has_blocks(joined) for joined in self._joined.values()):
            return "oneDNN lays these weights out in a way that the kernels do not know"
        return "no weight has sides that are multiples of 64"

    def written(self) -> None:
        """Say that an optimizer has written the copies."""
        self._stale.update(self._packed)

    def refresh(self) -> None:
        """Make all copies anew when they are next asked for: after weights were changed through `parameter.data`.

        Example:
            >>> weight = torch.nn.Parameter(torch.ones(2, 3))
            >>> copies = WorkingCopies([[weight]])
            >>> before = copies.of(weight)[0, 0].item()
            >>> weight.data.fill_(2.0)[0, 0].item(), copies.of(weight)[0, 0].item()
            (2.0, 1.0)
            >>> copies.refresh()
            >>> copies.of(weight)[0, 0].item()
            2.0
        """
        self._seen.clear()
