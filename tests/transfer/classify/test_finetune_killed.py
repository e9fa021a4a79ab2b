"""Fine-tuning, killed as a real process is, ends with the weights of a run that was never stopped."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}


def command(out: Path, data: Path, workers: int) -> list[str]:
    words = ["--weights", "none", "--backbone", "vit_tiny_patch16_224", "--backbone-args.patch_size", "8"]
    words += ["--backbone-args.embed_dim", "48", "--backbone-args.depth", "2", "--backbone-args.num_heads", "3"]
    words += ["--img-size", "32", "--batch-size", "8", "--steps", "40", "--save-every", "4", "--log-every", "2"]
    words += ["--val-share", "0.3", "--eval-every", "20 steps", "--ema", "0.9", "--device", "cpu", "--trackers", "none"]
    words += ["--num-workers", str(workers)]
    return [sys.executable, "-m", "fastmim", "finetune", "--data", str(data), "--out", str(out), *words]


def num_lines(out: Path) -> int:
    path = out / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_kill_9_and_the_same_command_give_the_same_weights(tmp_path: Path, photos: Path) -> None:
    """With everything that is random: mixing, RandAugment, erasing, drop path; and the averaged weights."""
    data, whole, killed = (tmp_path / name for name in ("data", "whole", "killed"))
    for number, path in enumerate(sorted(photos.iterdir())):
        (data / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        (data / "ab"[number % 2] / path.name).symlink_to(path)
    assert subprocess.run(command(whole, data, 0), env=ENVIRONMENT, capture_output=True).returncode == 0
    for kills in range(2):
        process = subprocess.Popen(command(killed, data, 1), env=ENVIRONMENT, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while num_lines(killed) <= 4 + 7 * kills:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()
        process.wait()
    assert not (killed / "weights.safetensors").exists()
    end = subprocess.run(command(killed, data, 0), env=ENVIRONMENT, capture_output=True, text=True)
    assert end.returncode == 0 and "resuming at step" in end.stdout, end.stderr
    for name in ("checkpoints/step_000000040/model.safetensors", "weights.safetensors"):
        one, other = load_file(whole / name), load_file(killed / name)
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
