"""Compiling kernels and running them on the threads that PyTorch computes with.

May import layers 0 and 1. A kernel is a Python function over whole numbers (addresses, sizes), a first argument that
says which of its chunks to work on, and a second that says in which of the scratch areas:

    @kernel                                     launch(scale, num_chunks, address, size, ...)
    def scale(chunk, worker, address, size, ...)

numba makes machine code of it (kept on disk), and PyTorch's own OpenMP library runs it, so that no second set of
threads competes for the cores. Chunks are claimed by whichever thread is free; what a chunk computes depends on its
number alone, so that results do not depend on the number of threads.
"""

from __future__ import annotations

import ctypes
import functools
import inspect
import os
import struct
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, overload

import torch
from numba import cfunc, njit, types
from numba.core import cgutils
from numba.core.extending import intrinsic
from numba.core.typing.templates import signature

from headstart.models.kernels.machine_code import load_or_compile
from headstart.models.kernels.vectors import add_one

__all__ = ["Kernel", "bits_of", "find_parallel", "float_of", "kernel", "num_workers", "number_at"]


@intrinsic
def number_at(typing_context: Any, address: Any, index: Any) -> Any:
    """Read an int64."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        from llvmlite import ir

        place = builder.add(args[0], builder.mul(args[1], ir.Constant(ir.IntType(64), 8)))
        return builder.load(builder.inttoptr(place, ir.IntType(64).as_pointer()))

    return signature(types.int64, types.int64, types.int64), generate


@intrinsic
def address_of(typing_context: Any, pointer: Any) -> Any:
    """Give the address that a pointer holds."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.ptrtoint(args[0], cgutils.intp_t)

    return signature(types.int64, types.voidptr), generate


@intrinsic
def float_of(typing_context: Any, bits: Any) -> Any:
    """Give the float32 whose bits `bits_of` gave."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        from llvmlite import ir

        return builder.bitcast(builder.trunc(args[0], ir.IntType(32)), ir.FloatType())

    return signature(types.float32, types.int64), generate


def bits_of(value: float) -> int:
    """Give the bits of a float32, as kernels take numbers."""
    return int(struct.unpack("<i", struct.pack("<f", value))[0])


class Kernel:
    """A compiled function over chunks.

    Args:
        function: (chunk, worker, *numbers), all int64.
        variant: tells kernels of one function apart that were made over different types.
    """

    names: ClassVar[set[str]] = set()

    def __init__(self, function: Callable[..., None], variant: str = "") -> None:
        self._function = function
        self._num_arguments = len(inspect.signature(function).parameters) - 2
        self.name = f"{function.__module__.rpartition('.')[2]}.{function.__name__}{variant and '.' + variant}"
        if self.name in self.names:
            raise ValueError(f"There are two kernels {self.name}; give them a variant.")
        self.names.add(self.name)
        functools.update_wrapper(self, function)

    @functools.cached_property
    def _address(self) -> int:
        """Read the machine code, or compile it."""
        return load_or_compile(self.name, self._compile)

    def _compile(self) -> tuple[str, str]:
        """Give name and LLVM's code of a C function that works on chunks until there are none left."""
        body = njit(inline="never", error_model="numpy")(self._function)
        numbers = [f"number_at(place, {3 + index})" for index in range(self._num_arguments)]
        source = (
            "def run(pointer):\n"
            "    place = address_of(pointer)\n"
            "    worker = add_one(place + 8)\n"
            "    count = number_at(place, 2)\n"
            "    while True:\n"
            "        chunk = add_one(place)\n"
            "        if chunk >= count:\n"
            "            break\n"
            f"        body(chunk, worker, {', '.join(numbers)})\n"
        )
        scope = {"address_of": address_of, "add_one": add_one, "number_at": number_at, "body": body}
        exec(source, scope)
        compiled = cfunc(types.void(types.voidptr), error_model="numpy")(scope["run"])
        return compiled.native_name, compiled.inspect_llvm()

    def __call__(self, num_chunks: int, *numbers: int) -> None:
        """Run all chunks; returns when they are done."""
        block = array("q", (0, 0, num_chunks, *numbers))
        address, _ = block.buffer_info()
        threads = min(num_chunks, torch.get_num_threads())
        parallel = find_parallel()
        if threads > 1 and parallel is not None:
            parallel(self._address, address, threads, 0)
        elif num_chunks:
            _CALL(self._address)(address)


@overload
def kernel(function: Callable[..., None]) -> Kernel: ...


@overload
def kernel(*, variant: str) -> Callable[[Callable[..., None]], Kernel]: ...


def kernel(function: Callable[..., None] | None = None, *, variant: str = "") -> Any:
    """Make a kernel of a function: `@kernel`, or `@kernel(variant="bfloat16")` where one is made several times."""
    if function is None:
        return functools.partial(Kernel, variant=variant)
    return Kernel(function, variant)


def num_workers(num_chunks: int) -> int:
    """Give how many scratch areas a kernel of so many chunks needs."""
    return max(1, min(num_chunks, torch.get_num_threads()))


_CALL = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@functools.cache
def find_parallel() -> Any:
    """Find the function by which PyTorch's OpenMP library runs another one on its threads; None where it has none.

    One thread does the work then.
    """
    folder = Path(torch.__file__).parent
    for library in sorted([*folder.glob("lib/lib*omp*"), *folder.parent.glob("torch.libs/lib*omp*")]):
        try:
            # Only a library that PyTorch has loaded: a second one would have threads of its own.
            function = ctypes.CDLL(str(library), mode=getattr(os, "RTLD_NOLOAD", 0)).GOMP_parallel
        except (OSError, AttributeError):
            continue
        function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        function.restype = None
        return function
    return None
