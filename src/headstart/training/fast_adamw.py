"""AdamW that makes an update in one pass over all numbers, and of embedding rows only where they are needed.

May import layers 0 to 2. `torch.optim.AdamW` touches each number many times: clipping, moments, decay, weight, and the
conversion of weights for the forward pass. Here a kernel (`models/kernels/adamw.py`) does it all at once:

    gradient (float32 or bfloat16) -> times `gradient_factor` -> moments -> weight -> bfloat16 working copy

Weights and moments lie in flat buffers; parameters stay what they were, with their names and shapes, and the state has
torch's own keys, so that a checkpoint of either class can be resumed by the other. Without the kernels (no numba) the
same numbers come from PyTorch's operations, to rounding.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch

from headstart.models.kernels.tables import chunks_of
from headstart.models.lazy_embedding import LazyEmbedding
from headstart.models.row_gradients import kernels_or_none, rows_and_values
from headstart.models.working_copies import WorkingCopies
from headstart.training.flat_buffers import Slot, why_not_fast
from headstart.training.gradients import gradient_norm, merge_rows, scale_gradients
from headstart.training.missed_updates import MissedUpdates, as_bits

__all__ = ["FastAdamW", "clipping_factor", "why_not_fast"]

_LINE: Final = 16  # float32 numbers in 64 bytes
_KINDS: Final = (torch.float32, torch.bfloat16)
_TINY_MOMENT, _TINY_SQUARE = 1e-30, 1e-37  # those of the kernel


class FastAdamW(torch.optim.AdamW):
    """`torch.optim.AdamW` for float32 parameters on the CPU, in one pass.

    The numbers are those of torch's class to rounding (1e-6 relative), except that moments below 1e-30 (squares: 1e-37)
    become 0; they could change no weight. Gradients may be float32 or bfloat16, and for lazy embeddings sparse rows.

    With lazy embeddings a row's weights and moments are brought up to date when the row is looked up, by
    `state_dict()` of the model or of the optimizer, and by `flush()`: call it before you read or write such a weight
    itself. What follows does not depend on when that is, to the bit.

    Args:
        params: parameters or groups, as `torch.optim` takes them. Their memory moves into one flat buffer.
        lr: learning rate; `param_groups[i]["lr"]` may change at any step.
        betas: decay of the two moments.
        eps: added to the root of the second moment.
        weight_decay: decoupled, times the learning rate.
        working_copies: copies that each update writes, too.
        lazy: embeddings whose rows are updated when they are needed.

    Attributes:
        gradient_factor: the next step multiplies gradients with it (clipping), and sets it back to 1.

    Raises:
        ValueError: a parameter cannot be trained so, see `why_not_fast`.

    Example:
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = FastAdamW(model.parameters(), lr=1e-3)
        >>> model(torch.ones(1, 3)).sum().backward()
        >>> optimizer.step()
        >>> float(optimizer.state[model.bias]["step"])
        1.0

    Source: Loshchilov & Hutter 2019, Decoupled Weight Decay Regularization (AdamW).
    """

    # Here, because copies of an optimizer are made without __init__.
    _slots: list[Slot] | None = None
    _working_copies: WorkingCopies | None = None
    gradient_factor: float = 1.0

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        working_copies: WorkingCopies | None = None,
        lazy: Iterable[LazyEmbedding] = (),
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, foreach=False)
        slots = {slot.parameter: slot for slot in self._laid_out()}
        for embedding in lazy:
            slot = slots.get(embedding.weight)
            if slot is not None and kernels_or_none() is not None and eps > 0:
                slot.missed = MissedUpdates(embedding, slot.tensors)
        self.working_copies = working_copies

    @property
    def working_copies(self) -> WorkingCopies | None:
        """The copies that each update writes, too."""
        return self._working_copies

    @working_copies.setter
    def working_copies(self, copies: WorkingCopies | None) -> None:
        if self._working_copies is not None:
            self._working_copies.kept_by_optimizer = False
        self._working_copies = copies
        self._link_copies()

    def _link_copies(self) -> None:
        """Let each update write the copies of all parameters that are trained here."""
        slots, copies = self._laid_out(), self._working_copies
        for slot in slots:
            slot.copy = copies.tensors.get(slot.parameter) if copies is not None else None
        if copies is not None:
            copies.keep(slot.parameter for slot in slots)

    @property
    def lazy(self) -> list[LazyEmbedding]:
        """The embeddings whose rows are updated when they are needed."""
        return [slot.missed.embedding for slot in self._laid_out() if slot.missed is not None]

    def flush(self) -> None:
        """Make up for every update that a row of a lazy embedding has missed; changes no bit of what follows."""
        for slot in self._laid_out():
            if slot.missed is not None:
                slot.missed.flush()

    def stop_lazy(self) -> None:
        """Bring all rows up to date, and update whole matrices from now on; the embeddings are ordinary ones again."""
        for slot in self._laid_out():
            slot.stop_lazy()

    def clip(self, max_norm: float | None, *, in_place: bool = False) -> torch.Tensor:
        """Measure the gradients, and let the next step scale them so that their norm is at most `max_norm`.

        Takes the place of `torch.nn.utils.clip_grad_norm_`, which passes over all gradients once more. Gradients that
        are not finite are not scaled.

        Args:
            max_norm: None only measures.
            in_place: scale them now, so that they can be looked at.

        Returns:
            2-norm of all gradients before, float32, without dimensions.
        """
        parameters = [slot.parameter for slot in self._laid_out()]
        merge_rows(parameters)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = gradient_norm(gradients, by_kernel=True)
        factor = clipping_factor(float(norm), max_norm)
        self.gradient_factor = 1.0 if in_place else factor
        if in_place:
            scale_gradients(parameters, factor)
        return norm

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients; see `torch.optim.Optimizer.zero_grad`."""
        if not set_to_none:
            super().zero_grad(set_to_none=False)
            return
        for slot in self._laid_out():
            slot.parameter.grad = None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters; see `torch.optim.Optimizer.add_param_group`.

        Raises:
            ValueError: one of them cannot be trained so.
        """
        super().add_param_group(param_group)
        reason = why_not_fast(parameter for group in self.param_groups for parameter in group["params"])
        if reason:
            self.param_groups.pop()
            raise ValueError(f"FastAdamW: {reason}. Use torch.optim.AdamW.")
        former = self._slots or []
        self._slots = None
        if former:
            self._link_copies()
            for slot, before in zip(self._laid_out(), former, strict=False):
                slot.missed = before.missed
                if slot.missed is not None:
                    slot.missed.tensors = slot.tensors

    def state_dict(self) -> dict[str, Any]:
        """Give the state as torch's AdamW has it, with all rows up to date."""
        self.flush()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the state of this class or of torch's AdamW.

        Raises:
            ValueError: it is one of `amsgrad` or `maximize`, or of other parameters.
        """
        for group in state_dict["param_groups"]:
            for name in ("amsgrad", "maximize"):
                if group.get(name):
                    raise ValueError(f"FastAdamW knows no {name}. Use torch.optim.AdamW for this state.")
        self.flush()
        super().load_state_dict(state_dict)
        for slot in self._laid_out():
            slot.state = None
            if self.state.get(slot.parameter):
                self._attach(slot)

    def __getstate__(self) -> dict[str, Any]:
        self.flush()
        return super().__getstate__()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if self._slots is not None:  # torch puts new dicts in the place of the groups
            for slot, group in zip(self._slots, self._groups_of_parameters(), strict=True):
                slot.group = group

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Make an update; see `torch.optim.Optimizer.step`.

        Raises:
            RuntimeError: a gradient is sparse whose embedding is not lazy, or a parameter was moved, converted or
                replaced.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        slots = self._laid_out()
        self._check_replaced(slots)
        # All that needs memory comes first: an update is counted before it is made, and then made whole.
        dense, rows, table, table_rows = self._gather(slots)
        if len(dense) + len(rows) == len(slots):
            self._counts.add_(1.0)
        else:
            self._counts[torch.tensor([*dense, *rows], dtype=torch.int64)] += 1.0
        kernels = kernels_or_none()
        if kernels is None:
            for index in dense:
                _update_plainly(slots[index], table[table_rows[index]], self.gradient_factor)
        elif dense:
            numbers = as_bits(table)
            chunks = chunks_of(tuple(0 if slot.missed else slot.size for slot in slots), kernels.CHUNK)
            kernels.adamw_pass(
                len(chunks),
                chunks.ctypes.data,
                self._entries.ctypes.data,
                numbers.ctypes.data,
                int(as_bits([self.gradient_factor])[0]),
            )
        for index, (numbers_of_rows, values) in rows.items():
            missed = slots[index].missed
            assert missed is not None
            missed.update(numbers_of_rows, values, self.gradient_factor)
        if self._working_copies is not None:
            self._working_copies.written()
        self.gradient_factor = 1.0
        self._kept.clear()
        return loss

    def _gather(
        self, slots: list[Slot]
    ) -> tuple[list[int], dict[int, tuple[np.ndarray, torch.Tensor]], list[tuple[float, ...]], list[int]]:
        """Look at every gradient and fill the table of tensors; no number of the training is changed.

        Returns:
            Which slots have a dense gradient; which have rows, and these; the numbers of the update for each group and
            count that occurs, and which of them each slot takes.
        """
        dense: list[int] = []
        rows: dict[int, tuple[np.ndarray, torch.Tensor]] = {}
        table: list[tuple[float, ...]] = []
        known: dict[tuple[int, float], int] = {}
        pointers, halves, weights, copies, table_rows = ([0] * len(slots) for _ in range(5))
        counts = self._counts.tolist()
        state_of = self.state.get
        for index, slot in enumerate(slots):
            parameter = slot.parameter
            gradient = parameter.grad
            if gradient is None:
                continue
            state = state_of(parameter)
            if state is not slot.state or state is None or state.get("exp_avg") is not slot.moment:
                self._attach(slot)
                counts[index] = float(slot.count)
            weights[index] = slot.check()
            key = (id(slot.group), counts[index])
            if key not in known:
                known[key] = len(table)
                table.append(_numbers(slot.group, counts[index] + 1))
            table_rows[index] = known[key]
            if gradient.is_sparse:
                if slot.missed is None:
                    raise RuntimeError("FastAdamW: a gradient is sparse, but its embedding is not lazy.")
                rows[index] = rows_and_values(gradient)
                slot.missed.prepare(table[known[key]])
                continue
            if slot.missed is not None:  # the weights are used elsewhere, too
                slot.stop_lazy()
            if gradient.dtype not in _KINDS or not gradient.is_contiguous():
                gradient = gradient.float().contiguous()
                self._kept.append(gradient)
            dense.append(index)
            pointers[index], halves[index] = gradient.data_ptr(), gradient.dtype == torch.bfloat16
            if slot.copy is not None:
                copies[index] = slot.copy.data_ptr()
        for place, column in enumerate((pointers, halves, weights)):
            self._entries[:, place] = column
        self._entries[:, 5], self._entries[:, 6] = copies, table_rows
        return dense, rows, table, table_rows

    def _laid_out(self) -> list[Slot]:
        """Give the slots; the first time, and when parameters were added, everything moves into flat buffers."""
        if self._slots is not None:
            return self._slots
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        ends = np.cumsum([0, *(-(-parameter.numel() // _LINE) * _LINE for parameter in parameters)]).tolist()
        weights, moments, squares = torch.empty(ends[-1]), torch.zeros(ends[-1]), torch.zeros(ends[-1])
        self._counts = torch.zeros(len(parameters))
        self._kept: list[torch.Tensor] = []
        self._entries = np.zeros((len(parameters), 8), dtype=np.int64)
        self._slots = []
        for index, (parameter, group) in enumerate(zip(parameters, self._groups_of_parameters(), strict=True)):
            span = slice(ends[index], ends[index] + parameter.numel())
            # A storage of its own: whoever saves a model takes views of one storage for copies of one tensor.
            own = torch.from_numpy(weights.numpy()[span])
            parameter.data = own.view(parameter.shape).copy_(parameter.data)
            moment, square = moments[span].view(parameter.shape), squares[span].view(parameter.shape)
            slot = Slot(parameter, group, self._counts[index], moment, square, parameter.numel())
            slot.address = parameter.data_ptr()
            self._entries[index, 3:5] = moment.data_ptr(), square.data_ptr()
            self._slots.append(slot)
            if self.state.get(parameter):
                self._attach(slot)
        return self._slots

    def _check_replaced(self, slots: list[Slot]) -> None:
        """Raise where the groups hold other parameters than before: those have gradients, and ours would never move."""
        parameters = itertools.chain.from_iterable(group["params"] for group in self.param_groups)
        if any(slot.parameter is not parameter for slot, parameter in zip(slots, parameters, strict=True)):
            raise RuntimeError(
                "FastAdamW: its parameters were replaced by others, as accelerate does for FSDP. "
                "Write build_optimizer(model, fast=False, ...)."
            )

    def _groups_of_parameters(self) -> list[dict[str, Any]]:
        return [group for group in self.param_groups for _ in group["params"]]

    def _attach(self, slot: Slot) -> None:
        """Let the state of a parameter lie in the flat buffers; one that has none yet begins with zeros."""
        if slot.missed is not None:
            slot.missed.flush()  # with the moments that these updates were missed with
        state: dict[str, Any] = self.state[slot.parameter]
        for name, tensor in (("step", slot.count), ("exp_avg", slot.moment), ("exp_avg_sq", slot.square)):
            if name not in state:
                tensor.zero_()
            elif state[name] is not tensor:
                tensor.copy_(torch.as_tensor(state[name])).add_(0.0)  # -0 becomes +0, which is what the kernels know
            state[name] = tensor
        slot.state = state


def clipping_factor(norm: float, max_norm: float | None) -> float:
    """Give the number by which gradients are multiplied so that their norm is at most `max_norm`.

    Those that are not finite stay as they are, so that it can be said where they come from.

    Example:
        >>> round(clipping_factor(3.0, 1.5), 6), clipping_factor(0.5, 1.0), clipping_factor(math.inf, 1.0)
        (0.5, 1.0, 1.0)

    Source: the same number as `torch.nn.utils.clip_grads_with_norm_`.
    """
    if max_norm is None or not math.isfinite(norm):
        return 1.0
    return min(1.0, max_norm / (norm + 1e-6))


def _numbers(group: Mapping[str, Any], count: float) -> tuple[float, ...]:
    """Give the numbers of update `count` (1 is the first), as the kernel's table holds them."""
    beta1, beta2 = group["betas"]
    rate = float(group["lr"])
    return (
        beta1,
        1.0 - beta1,
        beta2,
        1.0 - beta2,
        1.0 - rate * group["weight_decay"],
        rate / (1.0 - beta1**count),
        1.0 / math.sqrt(1.0 - beta2**count),
        group["eps"],
    )


def _update_plainly(slot: Slot, numbers: Sequence[float], factor: float) -> None:
    """Make one parameter's update with PyTorch's operations."""
    beta1, rest1, beta2, rest2, decay, step_size, scale, epsilon = numbers
    weight, moment, square = slot.parameter, slot.moment, slot.square
    assert weight.grad is not None
    gradient = weight.grad.float() * factor
    moment.mul_(beta1).add_(gradient, alpha=rest1)
    moment.masked_fill_(moment.abs() < _TINY_MOMENT, 0.0)
    square.mul_(beta2).addcmul_(gradient, gradient, value=rest2)
    square.masked_fill_(square < _TINY_SQUARE, 0.0)
    weight.mul_(decay).addcdiv_(moment, square.sqrt().mul_(scale).add_(epsilon), value=-step_size)
    if slot.copy is not None:
        slot.copy.copy_(weight)
