"""Fine-tuning, killed as a real process is, ends with the weights of a run that was never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from processes import fork, wait_for
from tuning import NETWORK, TINY, finetune

SETTINGS: dict[str, Any] = TINY | NETWORK | {
    "weights": "none", "steps": 40, "save_every": 4, "log_every": 2, "val_share": 0.3, "eval_every": "20 steps",
    "ema": 0.9,
}  # fmt: skip


def test_kill_9_and_the_same_command_give_the_same_weights(tmp_path: Path, photos: Path) -> None:
    """With everything that is random: mixing, RandAugment, erasing, drop path; and the averaged weights."""
    data, whole, killed = (tmp_path / name for name in ("data", "whole", "killed"))
    for number, path in enumerate(sorted(photos.iterdir())):
        (data / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        (data / "ab"[number % 2] / path.name).symlink_to(path)
    assert finetune(whole, data, **SETTINGS).finished
    for kills in range(2):
        with fork("finetune", data, killed, SETTINGS | {"num_workers": 1}) as process:
            wait_for(killed / "metrics.jsonl", 5 + 7 * kills)
            assert process.poll() is None
            process.kill()
    assert not (killed / "weights.safetensors").exists()
    with fork("finetune", data, killed, SETTINGS) as process:
        said, _ = process.communicate()
    assert process.returncode == 0 and said.count("resuming at step") == 2, said
    for name in ("checkpoints/step_000000040/model.safetensors", "weights.safetensors"):
        one, other = load_file(whole / name), load_file(killed / name)
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
