"""The machine's devices, cores, precision and memory."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from fastmim.errors import RequestError, first_line

BF16_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "bf16")
"""Names in `torch.cpu.get_capabilities()` of instructions that multiply bfloat16; the last is ARM's."""


def memory_gb(device: torch.device) -> float:
    """The peak memory use so far in GiB, of a CUDA device or else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if sys.platform == "win32":
        import psutil

        most = psutil.Process().memory_info().peak_wset
    else:
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return most / 2**30


def free_memory() -> int | None:
    """Bytes of host memory that this process can still take; None if the system does not tell (only Linux does)."""
    try:
        free = [1024 * _numbers(Path("/proc/meminfo"))["MemAvailable"]]
        group = Path("/sys/fs/cgroup", _text(Path("/proc/self/cgroup")).rpartition("::")[2].lstrip("/"))
    except (OSError, ValueError, KeyError):
        return None
    for folder in (group, *group.parents):  # a job's limit may be that of a parent group
        if (folder / "memory.max").is_file() and (most := _text(folder / "memory.max")) != "max":
            used = int(_text(folder / "memory.current"))
            free.append(int(most) - used + _numbers(folder / "memory.stat").get("inactive_file", 0))
    return max(0, min(free))


def _numbers(path: Path) -> dict[str, int]:
    """The lines of a file such as `MemFree:  1234 kB` or `anon 1234`."""
    words = [line.replace(":", " ").split() for line in _text(path).splitlines()]
    return {name: int(number) for name, number, *_ in words}


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip()


def resolve_device(name: str, *, local_rank: int | None = None) -> torch.device:
    """Return the torch device of a name; `auto` is the accelerator if there is one, else the CPU.

    Args:
        name: As the user gives it.
        local_rank: This process's number among several on this machine, each with an accelerator of its own.

    Raises:
        RequestError: this machine has no such device, or the name gives one device to several processes.
    """
    if name == "auto":
        name = str(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    if local_rank is not None and name != "cpu":
        if ":" in name:
            raise RequestError(
                f"device is {name!r} for several processes; expected its kind: take {name.split(':')[0]}"
            )
        name = f"{name}:{local_rank}"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # also refuses `meta`, which has shapes but no numbers
    except (RuntimeError, AssertionError, ImportError) as error:
        said = first_line(error)[:200]
        why = (
            "" if said.startswith(("Could not run", "Expected one of")) else f" ({said})"
        )  # lists of torch's back ends
        raise RequestError(
            f"device is {name!r}; expected one that this machine has{why}: {', '.join(_names())}, or auto"
        ) from None
    return device


def _names() -> list[str]:
    """The devices of this machine."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return ["cpu"]
    return ["cpu", *(f"{accelerator.type}:{number}" for number in range(torch.accelerator.device_count()))]


def resolve_workers(num_workers: int | None, *, sharing: int = 1) -> int:
    """Return the number of data workers; None gives one less than the cores, between 1 and 16.

    Args:
        num_workers: As the user gives it, for each process.
        sharing: Processes that share the cores.
    """
    return max(1, min(16, num_cores() // sharing - 1)) if num_workers is None else num_workers


def num_cores() -> int:
    """The number of cores that this process may use; all cores on systems without CPU affinity."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def resolve_bf16(precision: str, device: torch.device) -> bool:
    """Whether to autocast to bfloat16; `auto` does on CUDA devices and processors that multiply it fast."""
    return precision == "bf16" or (precision == "auto" and has_fast_bf16(device))


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the device has instructions that multiply bfloat16 faster than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return any(found.get(name, False) for name in BF16_INSTRUCTIONS)


def precision_notes(precision: str, device: torch.device) -> list[str]:
    """A line for the console if the precision is slow on this device."""
    if precision != "bf16" or device.type != "cpu" or has_fast_bf16(device):
        return []
    return ["note      bf16 is slow on this processor, which has no instructions for it; try --precision float32"]
