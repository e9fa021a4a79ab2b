"""Everything to measure on a GPU, in parts that resume: each writes a record, case by case.

    python benchmarks/gpu.py                        # all parts, most wanted first
    python benchmarks/gpu.py check step --minutes 8 # some of them
    python benchmarks/gpu.py --device cpu --toy     # every part at its smallest, to try the script

A case that stands in today's record of the same device is not run again. The exit status is 1 if a case failed.

Compiling a model can take minutes of one core, timing it takes seconds. So several processes save time on a
machine with many cores: they compile side by side, time in turn, and share the records. With `timeout`, send KILL.

    for model in vit_base swin_base pvt_v2; do
        python benchmarks/gpu.py step replay --only $model --turn /tmp/turn &
    done; wait
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

import gpu_checks
import gpu_replay
import gpu_speed
from fastmim.bench import records
from fastmim.system import files

PARTS = {
    "check": ("On the device, the numbers are those of the CPU.", gpu_checks.cases),
    "ceilings": ("What the device's matrix products and copies reach.", gpu_speed.ceilings),
    "step": ("A training step processes more images per second than its plain form.", gpu_speed.steps_),
    "replay": ("CUDA graphs keep small models from waiting for the processor.", gpu_replay.cases),
    "hog": ("The HOG target costs a few passes over the images.", gpu_speed.hogs),
    "methods": ("FastMIM at 128 px costs a fraction of MAE at 224 px and SimMIM at 192 px.", gpu_speed.methods_),
    "end-to-end": ("A run from the disk spends under a tenth of its time waiting for data.", gpu_speed.runs),
    "profile": ("Where the time of a training step goes, kernel by kernel.", gpu_speed.profiles),
    "save": ("How long training waits for a checkpoint.", gpu_speed.saves),
    "backbones": ("Every twentieth backbone of timm trains compiled.", gpu_checks.backbones),
}


def main(words: Sequence[str] | None = None) -> int:
    options = parse(words)
    torch.set_float32_matmul_precision("highest")
    torch.manual_seed(0)
    end = time.monotonic() + 60 * options.minutes
    failed = 0
    for part in options.parts or PARTS:
        claim, make_cases = PARTS[part]
        record = load(part, claim, options)
        for name, case in make_cases(options).items():
            if "error" not in record["summary"].get(name, {"error": ""}) or not selected(name, options):
                continue
            if time.monotonic() > end:
                print("out of time: the same command goes on with the rest")
                return 1
            found = records.rounded(attempt(case))
            with FileLock(Path(tempfile.gettempdir(), f"{record_name(part, options)}.lock")):
                record = load(part, claim, options)  # others may have added to it
                record["summary"][name] = found
                files.write_json(path(part, options), record)
            failed += "error" in found
            print(f"{part}: {name}: {found}", flush=True)
    return int(failed > 0)


def attempt(case: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run a case; what it raises is its result, so that one failure does not cost the others."""
    start = time.monotonic()
    try:
        found = case()
    except Exception as error:
        found = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}
    torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return found | {"seconds": time.monotonic() - start}


def load(part: str, claim: str, options: argparse.Namespace) -> dict[str, Any]:
    """Today's record of a part on this device, or a new one."""
    name = record_name(part, options)
    config = {"toy": options.toy, "rounds": options.rounds}
    new = records.make(name, claim=claim, config=config, raw={}, summary={}, device=options.device)
    if path(part, options).exists():
        old: dict[str, Any] = files.read_json(path(part, options))
        if measured_on(old) == measured_on(new):
            return old
    return new


def measured_on(record: dict[str, Any]) -> list[dict[str, Any]]:
    """What two runs must share to fill one record; how busy the machine is may differ."""
    machine = {key: value for key, value in record["hardware"].items() if key != "load_average"}
    return [machine, record["versions"], record["config"]]


def record_name(part: str, options: argparse.Namespace) -> str:
    return f"gpu-{part}-{options.device.partition(':')[0]}"


def path(part: str, options: argparse.Namespace) -> Path:
    records.prepare(options.records)
    return options.records / f"{record_name(part, options)}-{time.strftime('%Y-%m-%d')}.json"


def selected(name: str, options: argparse.Namespace) -> bool:
    return options.only is None or options.only in name


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"some of {', '.join(PARTS)}")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--toy", action="store_true", help="tiny models and few images")
    parser.add_argument("--rounds", type=int, default=9, help="timed steps of each form")
    parser.add_argument("--minutes", type=float, default=60, help="start no new case after this time")
    parser.add_argument(
        "--turn", type=Path, help="compile beside others that have this file, and time in turn with them"
    )
    parser.add_argument("--only", help="run the cases whose names contain this")
    parser.add_argument("--records", type=Path, default=Path(__file__).parent / "records")
    options = parser.parse_args(words)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"unknown part {', '.join(unknown)}; expected some of {', '.join(PARTS)}")
    return options


if __name__ == "__main__":
    sys.exit(main())
