"""Where a run computes: device, precision, threads and processes. The only place that imports accelerate.

May import layers 0 to 2. Every choice is a pure function of the machine and the recipe and is written into the run, so
that a second start computes the same bits.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import platform
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from headstart.errors import ProcessLostError, RecipeError, TrainingError, suggest
from headstart.models.hardware import has_fast_bfloat16
from headstart.training.processes import JoinedProcesses, Processes

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

__all__ = [
    "Device",
    "choose_device",
    "count_processes",
    "describe_environment",
    "is_joined",
    "is_sharded",
    "join_processes",
    "library_versions",
    "make_tracker",
    "open_store",
    "own_rank",
    "shard_model",
]

# Launchers that start several processes without saying so in WORLD_SIZE: how many, and what the launcher is called.
_LAUNCHERS = {
    "OMPI_COMM_WORLD_SIZE": "mpirun",
    "PMI_SIZE": "mpirun",
    "MV2_COMM_WORLD_SIZE": "mpirun",
    "SLURM_STEP_NUM_TASKS": "srun",
    "LOCAL_WORLD_SIZE": "A launcher",
}
# Each training of a script leaves its signs under a name of its own.
_joins = itertools.count()


@dataclass(frozen=True)
class Device:
    """Where and how a run computes.

    Args:
        torch_device: the device of model and batches.
        precision: "fp32"; or "bf16" or "fp16": weights in float32, matrix products in bfloat16 or float16 (autocast).
        threads: CPU threads of one operation.
    """

    torch_device: torch.device
    precision: Literal["fp32", "bf16", "fp16"]
    threads: int

    def autocast(self) -> AbstractContextManager[Any]:
        """Give the context in which a forward pass runs in this precision."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.torch_device.type, dtype=dtype)

    def place(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Put a batch on the device; to a GPU from pinned memory, while the host goes on."""
        if self.torch_device.type != "cuda":
            return {name: tensor.to(self.torch_device) for name, tensor in batch.items()}
        return {
            name: tensor if tensor.is_cuda else tensor.pin_memory().to(self.torch_device, non_blocking=True)
            for name, tensor in batch.items()
        }

    def apply_threads(self) -> None:
        """Set the number of CPU threads, which decides the order of sums and so the bits of a result."""
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)


def choose_device(
    device: str = "auto", precision: str = "auto", threads: int | None = None, *, processes: int = 1
) -> Device:
    """Choose device, precision and threads from the recipe's words and the hardware.

    Args:
        device: "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1", "mps".
        precision: "auto" (bfloat16 where the hardware is fast at it), "fp32", "bf16", or "fp16" on a GPU.
        threads: of one operation; None takes the cores that this process may use, shared with the other processes of
            the training on this machine.
        processes: how many train together; with several, "cuda" is the GPU of this process's number on its machine.

    Raises:
        RecipeError: the device is unknown or not here, or does not compute in this precision.

    Example:
        >>> choose_device("cpu", "fp32", threads=1).precision
        'fp32'
    """
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
    if precision == "fp16" and torch_device.type != "cuda":
        raise RecipeError(
            f"train.precision is fp16, but the device is {torch_device.type}.",
            "a GPU (cuda), which multiplies float16 itself.",
            "Set train.precision=bf16, which has the range of float32 and needs no scaling of the loss, or auto.",
        )
    chosen: Literal["fp32", "bf16", "fp16"] = "fp32"
    if precision == "bf16":
        chosen = "bf16"
    elif precision == "fp16":
        chosen = "fp16"
    if precision == "auto" and has_fast_bfloat16(torch_device.type):
        chosen = "bf16"
    if processes > 1 and device == "cuda":
        torch_device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    here = int(os.environ.get("LOCAL_WORLD_SIZE", processes)) if processes > 1 else 1
    return Device(torch_device, chosen, threads or max(1, usable_cores() // here))


def usable_cores() -> int:
    """Count the cores that this process may use; a pure function of the machine, unlike PyTorch's current setting."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def count_processes(wanted: int | None) -> int:
    """Count the processes of this training: as the one that started them says, else as the recipe says.

    Args:
        wanted: `train.processes`.

    Raises:
        RecipeError: both say how many, and differ.
        TrainingError: several processes were started together, but none knows of the others, so that each would train
            a model of its own.

    Example:
        >>> count_processes(None)
        1
    """
    world_size = os.environ.get("WORLD_SIZE")
    if world_size is None:
        for variable, launcher in _LAUNCHERS.items():
            if int(os.environ.get(variable, "1")) > 1:
                raise TrainingError(
                    f"{launcher} has started {os.environ[variable]} processes ({variable}), which do not know of each "
                    "other (WORLD_SIZE is not set).",
                    "processes that were joined: WORLD_SIZE, RANK, MASTER_ADDR and MASTER_PORT.",
                    f"Start them with torchrun --nproc_per_node {os.environ[variable]} -m -- headstart train ..., or "
                    f"one process with --processes {os.environ[variable]}.",
                )
        return wanted or 1
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if int(world_size) > 1 and missing:
        raise TrainingError(
            f"This process is one of {world_size} (WORLD_SIZE), but {' and '.join(missing)} is not set.",
            "processes that were joined: WORLD_SIZE, RANK, MASTER_ADDR and MASTER_PORT.",
            "Start them with torchrun --nproc_per_node N -m -- headstart train ...",
        )
    if wanted is not None and wanted != int(world_size):
        raise RecipeError(
            f"train.processes is {wanted}, but {world_size} processes were started (WORLD_SIZE).",
            "one number.",
            "Leave --processes out under torchrun.",
        )
    return int(world_size)


def is_sharded(num_processes: int) -> bool:
    """Say whether accelerate is configured to shard the model over the processes (`accelerate launch --use_fsdp`).

    Raises:
        TrainingError: it is configured for something that is not supported, and would be ignored.
    """

    def is_on(variable: str) -> bool:
        return os.environ.get(variable, "false").lower() in ("true", "1")

    if is_on("ACCELERATE_USE_DEEPSPEED"):
        found, fix = "DeepSpeed (ACCELERATE_USE_DEEPSPEED)", "Choose FSDP, multi-GPU or multi-CPU in accelerate config."
    elif not is_on("ACCELERATE_USE_FSDP") or num_processes == 1:
        return False
    elif os.environ.get("FSDP_VERSION", "1") != "2":
        found, fix = "version 1 of FSDP (FSDP_VERSION)", "Set fsdp_version: 2 in accelerate's configuration."
    elif is_on("FSDP_ACTIVATION_CHECKPOINTING") or is_on("FSDP_OFFLOAD_PARAMS"):
        found = "FSDP with activation checkpointing or offloading of parameters"
        fix = "Switch both off in accelerate's configuration."
    else:
        return True
    raise TrainingError(f"accelerate is configured for {found}.", "FSDP version 2, or none.", fix)


def shard_model(model: torch.nn.Module) -> None:
    """Leave a part of each parameter in each of the joined processes, in place, as accelerate's configuration says.

    Gradients are then averaged over the processes by the backward pass.
    """
    from types import SimpleNamespace

    from accelerate.utils import FullyShardedDataParallelPlugin
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model

    plugin = FullyShardedDataParallelPlugin()
    plugin.cpu_ram_efficient_loading = False  # every process has the weights already
    # What accelerate's function reads of an Accelerator; a real one shards on GPUs alone.
    accelerator = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin), mixed_precision="no", is_main_process=own_rank() == 0
    )
    fsdp2_prepare_model(accelerator, model)


def is_joined() -> bool:
    """Say whether this process was started as one of several, by torchrun or by process 0."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def own_rank() -> int:
    """Give the number of this process among those that were started together; 0 where it is alone."""
    return int(os.environ.get("RANK", "0")) if is_joined() else 0


def join_processes(device: Device, *, timeout_seconds: float, for_one_run: bool = False) -> Processes:
    """Join the processes that the environment names (MASTER_ADDR, MASTER_PORT, WORLD_SIZE, RANK), through accelerate.

    Args:
        device: of this process; decides how gradients travel (gloo on the CPU, NCCL on GPUs).
        timeout_seconds: after which a process that does not answer counts as lost.
        for_one_run: closing ends the group, because the processes were started for one run; else they stay joined, as
            the next training of the same script needs them.

    Raises:
        ProcessLostError: not all of them came in this time.
    """
    import torch.distributed
    from accelerate import PartialState
    from accelerate.state import AcceleratorState
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    timeout = timedelta(seconds=timeout_seconds)
    own = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")
    before = {name: os.environ[name] for name in own if name in os.environ}
    rank, count = own_rank(), int(os.environ["WORLD_SIZE"])
    on_cpu = device.torch_device.type == "cpu"
    if not torch.distributed.is_initialized():
        # Somebody (TrainingArguments, an Accelerator) may have found this process alone before the others were started.
        AcceleratorState._reset_state(reset_partial_state=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of threads, which are ours to set
            state = PartialState(cpu=on_cpu, timeout=timeout, **({"backend": "gloo"} if on_cpu else {}))
        store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=timeout)
    except RuntimeError as error:
        raise ProcessLostError(
            f"Process {rank}: not all {count} processes came within {timeout_seconds:g} seconds "
            f"({str(error).splitlines()[0]}).",
            f"{count} processes that reach {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}.",
            "Look at what the others printed, and start all of them anew.",
        ) from error
    finally:
        os.environ.update(before)
    # A store that is there for one run knows one training; else each has its own signs.
    run = PrefixStore(f"headstart/{0 if for_one_run else next(_joins)}", store)
    # Numbers and signs go through the CPU; a group of its own where the gradients do not.
    control = None if on_cpu else torch.distributed.new_group(backend="gloo", timeout=timeout)

    def leave() -> None:
        state.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)

    if not for_one_run:
        atexit.register(state.destroy_process_group)
    joined = JoinedProcesses(rank, count, control, run, timeout_seconds, leave if for_one_run else None)
    joined.shards = is_sharded(count)
    return joined


def open_store() -> tuple[Any, int]:
    """Open the store by which processes of this machine find each other.

    Returns:
        The store, which lives as long as it is held, and its port.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    return store, store.port


def make_accelerator(mixed_precision: str) -> Any:
    """Make an `accelerate.Accelerator` for scripts that use one beside headstart's loop.

    Args:
        mixed_precision: "no", "bf16" or "fp16".
    """
    from accelerate import Accelerator

    return Accelerator(mixed_precision=mixed_precision)


def send_to_device(batch: Any, device: torch.device) -> Any:
    """Put the tensors of a batch, in whatever it holds them, on a device."""
    from accelerate.utils import send_to_device as send

    return send(batch, device)


def make_tracker(name: str, folder: Path) -> Any:
    """Make an `accelerate.Accelerator` that hands numbers to one tracker; nothing is opened yet.

    Args:
        name: as accelerate calls it.
        folder: for its files, where it takes one.
    """
    from accelerate import Accelerator
    from accelerate.utils import ProjectConfiguration

    project = ProjectConfiguration(project_dir=str(folder.parent), logging_dir=str(folder))
    return Accelerator(log_with=[name], project_config=project)


def library_versions() -> dict[str, str]:
    """Give the version of Python and of each library that a run stands on."""
    versions: dict[str, str] = {"python": platform.python_version()}
    for package in ("headstart", "torch", "transformers", "datasets", "accelerate", "tokenizers", "numpy", "pyarrow"):
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def describe_environment(device: Device) -> dict[str, Any]:
    """Describe machine and versions, for `environment.json`."""
    capability = torch.backends.cpu.get_cpu_capability() if device.torch_device.type == "cpu" else None
    return {
        "versions": library_versions(),
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
