"""Where a run computes: device, precision, threads and trackers. The only place that imports accelerate.

May import layers 0 and 1. Every choice is a pure function of the machine and the recipe and is written into the run, so
that a second start computes the same bits.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from headstart.errors import RecipeError, TrainingError, suggest

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

__all__ = ["Device", "Trackers", "choose_device", "describe_environment", "has_fast_bfloat16"]


@dataclass(frozen=True)
class Device:
    """Where and how a run computes.

    Args:
        torch_device: the device of model and batches.
        precision: "fp32", or "bf16": weights in float32, matrix products in bfloat16 (autocast).
        threads: CPU threads of one operation.
    """

    torch_device: torch.device
    precision: Literal["fp32", "bf16"]
    threads: int

    def autocast(self) -> AbstractContextManager[Any]:
        """Give the context in which a forward pass runs in this precision."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.torch_device.type, dtype=torch.bfloat16)

    def apply_threads(self) -> None:
        """Set the number of CPU threads, which decides the order of sums and so the bits of a result."""
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)


def has_fast_bfloat16(device_type: str) -> bool:
    """Say whether the hardware multiplies bfloat16 matrices itself (AVX-512 BF16 or AMX; Ampere and later).

    Without it bfloat16 is emulated and slower than float32.
    """
    if device_type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device_type != "cpu":
        return False
    capabilities = torch.backends.cpu.get_cpu_capability()
    if not capabilities.startswith("AVX512"):
        return False
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def choose_device(device: str = "auto", precision: str = "auto", threads: int | None = None) -> Device:
    """Choose device, precision and threads from the recipe's words and the hardware.

    Args:
        device: "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1", "mps".
        precision: "auto" (bfloat16 where the hardware is fast at it), "fp32" or "bf16".
        threads: of one operation; None takes the cores that this process may use.

    Raises:
        RecipeError: the device is unknown or not here.
        TrainingError: the process was started as one of several.

    Example:
        >>> choose_device("cpu", "fp32", threads=1).precision
        'fp32'
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise TrainingError(
            f"This process is one of {os.environ['WORLD_SIZE']} (WORLD_SIZE is set).",
            "one process.",
            "Start headstart without torchrun or accelerate launch.",
        )
    kinds = ["auto", "cpu", "cuda", "mps"]
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch_device = torch.device(device)
    except RuntimeError as error:
        raise RecipeError(f'train.device: "{device}" is unknown.', suggest(device, kinds)) from error
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(torch_device.type, False):
        raise RecipeError(
            f'train.device: "{device}" is not available here.',
            f"one of: {', '.join(name for name, here in available.items() if here)}.",
            "Set train.device=auto, or install a PyTorch build for that device.",
        )
    chosen: Literal["fp32", "bf16"] = "bf16" if precision == "bf16" else "fp32"
    if precision == "auto" and has_fast_bfloat16(torch_device.type):
        chosen = "bf16"
    return Device(torch_device, chosen, threads or usable_cores())


def usable_cores() -> int:
    """Count the cores that this process may use; a pure function of the machine, unlike PyTorch's current setting."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Trackers:
    """Hands the numbers of a run to trackers (TensorBoard) through accelerate.

    Args:
        names: as in `output.log_to`.
        run_dir: files of the trackers go to its folder `trackers`.
        config: the recipe's values, shown beside the curves.

    Raises:
        RecipeError: a tracker's package is missing (the message has the install line).
    """

    def __init__(self, names: Sequence[str], run_dir: Path, config: Mapping[str, Any]) -> None:
        self._accelerator: Any = None
        if not names:
            return
        check_trackers(names)
        from accelerate import Accelerator
        from accelerate.utils import ProjectConfiguration

        project = ProjectConfiguration(project_dir=str(run_dir), logging_dir=str(run_dir / "trackers"))
        self._accelerator = Accelerator(log_with=list(names), project_config=project)
        flat = {
            f"{section}.{key}": value if isinstance(value, int | float | str | bool) else str(value)
            for section, values in config.items()
            for key, value in values.items()
            if value is not None
        }
        self._accelerator.init_trackers("", config=flat)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Record named numbers at a step (optimizer updates made so far)."""
        if self._accelerator is not None:
            self._accelerator.log(dict(values), step=step)

    def close(self) -> None:
        """Write out what is buffered."""
        if self._accelerator is not None:
            self._accelerator.end_training()
            self._accelerator = None


def check_trackers(names: Sequence[str]) -> None:
    """Raise where the package of a tracker is missing, before anything is written."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise RecipeError(
                f'output.log_to names "{name}", but its package is not installed.',
                f"the package {name}.",
                f"Run: pip install 'headstart[{name}]', or remove it from output.log_to.",
            )


def describe_environment(device: Device) -> dict[str, Any]:
    """Describe machine and versions, for `environment.json`."""
    from importlib.metadata import PackageNotFoundError, version

    versions: dict[str, str] = {"python": platform.python_version()}
    for package in ("headstart", "torch", "transformers", "datasets", "accelerate", "tokenizers", "numpy", "pyarrow"):
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    capability = torch.backends.cpu.get_cpu_capability() if device.torch_device.type == "cpu" else None
    return {
        "versions": versions,
        "platform": platform.platform(),
        "processor": _processor_name(),
        "cores": usable_cores(),
        "cpu_capability": capability,
        "device": str(device.torch_device),
        "gpu": torch.cuda.get_device_name(device.torch_device) if device.torch_device.type == "cuda" else None,
        "threads": device.threads,
        "precision": device.precision,
    }


def _processor_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
