"""A job on a real Slurm cluster of two nodes, which is stopped, loses a node, and ends with the weights of one process.

    make test-cluster      # as root, with Debian's slurm-wlm and munge

The job is submitted through the script that `fastmim slurm` writes.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file

HERE = Path(__file__).parent
MINUTES = 10
RUN = [
    "pretrain",
    "--data",
    "samples",
    "--backbone",
    "vit_tiny_patch16_224",
    "--backbone-args.patch_size",
    "8",
    "--backbone-args.embed_dim",
    "48",
    "--backbone-args.depth",
    "2",
    "--backbone-args.num_heads",
    "3",
    "--img-size",
    "32",
    "--batch-size",
    "8",
    "--steps",
    "1500",
    "--lr",
    "1e-3",
    "--save-every",
    "200",
    "--log-every",
    "10",
    "--num-workers",
    "0",
    "--device",
    "cpu",
    "--precision",
    "float32",
    "--trackers",
    "none",
    "--picture-every",
    "never",
]


def main() -> int:
    for program in ("sbatch", "slurmctld", "munged"):
        if not shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin"):
            print(f"{program} is missing; expected Debian's slurm-wlm and munge: apt-get install slurm-wlm munge")
            return 2
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        try:
            call(str(HERE / "slurm.sh"), "start", str(folder / "slurm"))
            return compare(folder)
        finally:
            call(str(HERE / "slurm.sh"), "stop", str(folder / "slurm"))


def compare(folder: Path) -> int:
    """Run the job through its troubles, and the same settings in one process; 0 if both end alike."""
    one, two = folder / "one", folder / "two"
    script = folder / "job.sbatch"
    asked = ["--nodes", "2", "--gpus-per-node", "0", "--cpus-per-task", "1", "--time", "30:00", "--out", str(script)]
    fastmim("slurm", *asked, "--", *RUN, "--out", str(two))
    job = call("sbatch", "--parsable", f"--chdir={folder}", str(script)).strip()
    print(f"job {job} on {call('sinfo', '-h', '-o', '%D nodes').strip()}", flush=True)

    wait("its first lines", lambda: lines(two) > 3)
    call("scancel", "--signal=USR1", job)
    wait("the request to stop", lambda: "stopped and saved" in log(folder))
    start_now(job)
    before = lines(two)
    wait("its second start", lambda: lines(two) > before + 3)
    print(f"stopped by a signal, requeued, and going on: line {lines(two)}", flush=True)

    os.kill(int((folder / "slurm/n2.pid").read_text()), signal.SIGKILL)
    call("scontrol", "update", "nodename=n2", "state=down", "reason=test")
    wait("the loss of a node", lambda: state(job) == "PENDING")
    before = lines(two)
    call(str(HERE / "slurm.sh"), "slurmd", "n2")  # ReturnToService takes it back
    start_now(job)
    wait("its third start", lambda: lines(two) > before + 3)
    print(f"a node lost, requeued, and going on: line {lines(two)}", flush=True)
    wait("its end", lambda: (two / "weights.safetensors").exists() and state(job) in ("", "COMPLETED"))

    fastmim(*RUN, "--out", str(one))
    a, b = (load_file(out / "weights.safetensors") for out in (one, two))
    difference = max(float((a[name] - b[name]).abs().max()) for name in a if a[name].is_floating_point())
    curves = [
        [line["loss"] for line in map(json.loads, (out / "metrics.jsonl").open()) if "loss" in line]
        for out in (one, two)
    ]
    same_steps = len(curves[0]) == len(curves[1])
    apart = max(abs(x - y) / x for x, y in zip(*curves, strict=same_steps))
    print(f"against one process: losses differ by {apart:.1e} (relative), weights by {difference:.1e}")
    return int(not same_steps or apart > 1e-5 or difference > 1e-4)


def start_now(job: str) -> None:
    """Slurm holds requeued jobs back for two minutes; one that starts within a second or so finds its rights gone."""
    wait("the queue", lambda: state(job) == "PENDING")
    time.sleep(5)
    subprocess.run(["scontrol", "update", f"jobid={job}", "starttime=now"], capture_output=True)


def state(job: str) -> str:
    return subprocess.run(["squeue", "-h", "-j", job, "-o", "%T"], capture_output=True, text=True).stdout.strip()


def lines(out: Path) -> int:
    path = out / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def log(folder: Path) -> str:
    return "".join(path.read_text() for path in folder.glob("fastmim-*.log"))


def wait(what: str, done: Callable[[], bool]) -> None:
    end = time.monotonic() + 60 * MINUTES
    while not done():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} did not come within {MINUTES} minutes")
        time.sleep(0.2)


def fastmim(*words: str) -> None:
    call(sys.executable, "-m", "fastmim", *words)


def call(*words: str) -> str:
    ended = subprocess.run(words, capture_output=True, text=True)
    if ended.returncode:
        raise RuntimeError(f"{' '.join(words)}: status {ended.returncode}: {ended.stdout}{ended.stderr}")
    return ended.stdout


if __name__ == "__main__":
    sys.exit(main())
