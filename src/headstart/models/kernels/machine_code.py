"""Machine code of the kernels: made once for a processor, kept on disk, read back.

May import layers 0 and 1. A file belongs to the sources of all kernels, the versions of numba and LLVM, and the
processor, all of which its folder's name sums up; it begins with a checksum, so that half a file is made anew.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm
import numba
from numba.core import registry

from headstart.data.table_cache import cache_dir

__all__ = ["folder", "load_or_compile"]

_CHECKSUM_BYTES = 32
# Machine code lives as long as the engine that loaded it.
_engines: list[Any] = []


def load_or_compile(name: str, compile_kernel: Callable[[], tuple[str, str]]) -> int:
    """Give the address of a kernel's function.

    Args:
        name: of the kernel, different from those of all others.
        compile_kernel: gives the name of a function that takes a pointer, and LLVM's code; called where there is no
            file yet.
    """
    path = folder() / f"{name}.o"
    held = _read(path)
    if held is None:
        entry, code = compile_kernel()
        held = entry, _target_machine().emit_object(llvm.parse_assembly(code))
        _write(path, *held)
    entry, machine_code = held
    _name_symbols()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _target_machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(machine_code))
    engine.finalize_object()
    _engines.append(engine)
    return int(engine.get_function_address(entry))


def _target_machine() -> Any:
    """Give the processor at hand as LLVM knows it: what it is told decides the bits of a result."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple()
    return target.create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=3,
        reloc="static" if target.name.startswith("x86") else "default",
        codemodel="jitdefault",
        jit=True,
    )


@functools.cache
def _name_symbols() -> None:
    """Let numba tell LLVM where its own functions are, which the code of a kernel names."""
    registry.cpu_target.target_context.refresh()


@functools.cache
def folder() -> Path:
    """Give where the machine code for these sources and this processor is kept; there once something was compiled."""
    parts = [numba.__version__, llvmlite.__version__, llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()]
    for source in sorted(Path(__file__).parent.glob("*.py")):
        parts.append(source.read_text(encoding="utf-8"))
    return cache_dir("kernels") / hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def _read(path: Path) -> tuple[str, bytes] | None:
    """Give a function's name and machine code; None where there is no whole file."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    checksum, rest = content[:_CHECKSUM_BYTES], content[_CHECKSUM_BYTES:]
    if hashlib.sha256(rest).digest() != checksum:
        return None
    entry, _, machine_code = rest.partition(b"\0")
    return entry.decode(), machine_code


def _write(path: Path, entry: str, machine_code: bytes) -> None:
    """Keep machine code; a disk that is full or cannot be written costs the time of another compilation only."""
    rest = entry.encode() + b"\0" + machine_code
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent)
        try:
            with open(handle, "wb") as file:
                file.write(hashlib.sha256(rest).digest() + rest)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
