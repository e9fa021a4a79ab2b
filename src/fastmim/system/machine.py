"""What this machine is: its processor, cores and accelerator."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any


def hardware(device: str) -> dict[str, Any]:
    """The machine: processor, its bfloat16 instructions, cores and device; on CUDA, the accelerator's name.

    The load average says how many processes shared the machine in the last five minutes.
    """
    import torch  # not with this module: `cost` reads records without it

    from fastmim.system.devices import BF16_INSTRUCTIONS

    found = torch.cpu.get_capabilities()
    about: dict[str, Any] = {
        "processor": _processor(),
        "bf16_instructions": [name for name in BF16_INSTRUCTIONS if found.get(name)],
        "cores": os.cpu_count(),
        "device": device,
    }
    if sys.platform != "win32":
        about["load_average"] = round(os.getloadavg()[1], 1)
    if device.startswith("cuda"):
        about["accelerator"] = torch.cuda.get_device_name(device)
    return about


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
