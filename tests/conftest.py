"""What several tests share: folders of small pictures, and a run small enough for a test."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from PIL import Image

import fastmim
from fastmim.data.sources import open_source

# The same examples wherever the suite runs, and no verdict on how fast they are drawn there.
settings.register_profile("suite", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

# 0.1 M parameters, 4 x 4 positions: a step takes milliseconds.
SMALL: dict[str, Any] = {
    "backbone": "vit_tiny_patch16_224",
    "backbone_args": {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3},
    "img_size": 32,
    "batch_size": 8,
    "steps": 12,
    "lr": 1e-2,
    "save_every": 4,
    "log_every": 2,
    "num_workers": 0,
    "device": "cpu",
    "precision": "float32",  # the same on every processor, and small networks gain nothing from less
    "trackers": "none",
    "picture_every": "never",
    "report": "never",
}


# An untrained backbone's features.
UNTRAINED: dict[str, Any] = {
    "weights": "none",
    "backbone": SMALL["backbone"],
    "backbone_args": SMALL["backbone_args"],
    "img_size": 32,
    "num_workers": 0,
    "device": "cpu",
    "precision": "float32",
}


def command_line(command: str, data: Path, out: Path, settings: dict[str, Any]) -> list[str]:
    """The words that run a command with these settings in a process of its own."""
    words = [sys.executable, "-m", "fastmim", command, "--data", str(data), "--out", str(out)]
    for key, value in settings.items():
        flag = "--" + key.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-"))
        elif isinstance(value, dict):
            words += [word for k, v in value.items() for word in (f"{flag}.{k}", str(v))]
        else:
            words += [flag, str(value)]
    return words


def losses(out: Path) -> list[float]:
    """The loss of every log step of a run."""
    lines = (json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def usual_signals() -> None:
    """Let signals have the effect that they have in a process that has just started."""
    for name in ("SIGTERM", "SIGUSR1", "SIGHUP", "SIGINT"):
        if hasattr(signal, name):
            usual = signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
            signal.signal(signal.Signals[name], usual)


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """The nearest thing to a full disk that any user can have: the kernel refuses to write on."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 JPEGs of 96 x 80 pixels, cut from the built-in photographs."""
    folder = tmp_path_factory.mktemp("photos")
    samples = open_source("samples")
    for number in range(24):
        pixels = samples.read(number * len(samples) // 24)
        Image.fromarray(pixels).convert("RGB").resize((96, 80)).save(folder / f"{number:02d}.jpg")
    return folder


def _coloured(label: int, generator: np.random.Generator, side: tuple[int, int]) -> Image.Image:
    """Noise with more of red, green or blue."""
    pixels = generator.integers(0, 150, (side[1], side[0], 3))
    pixels[..., label] += 80
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes in mixed formats and sizes, 40, 16 and 8 for training and 8 each to validate on."""
    root = tmp_path_factory.mktemp("labelled")
    generator = np.random.default_rng(0)
    for part, counts in (("train", (40, 16, 8)), ("val", (8, 8, 8))):
        for label, (name, count) in enumerate(zip(("blue", "green", "red"), counts, strict=True)):
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                image = _coloured(2 - label, generator, ((32, 32), (48, 40))[number % 2])
                image.save(folder / f"{number}{('.png', '.jpg', '.webp')[number % 3]}")
    return root


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory, labelled: Path) -> Path:
    """A run of SMALL on the pictures of `labelled`."""
    out = tmp_path_factory.mktemp("runs") / "pretrained"
    fastmim.pretrain(**(SMALL | {"data": str(labelled / "train"), "out": out, "steps": 4}))
    return out


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Small tensors: threads only get in each other's way."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _usual_signals() -> None:
    """A command that a signal has stopped ignores further ones, for its process is about to end; here it goes on."""
    usual_signals()


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """No address answers, and nothing else says so: the hub's client is not told to be offline."""

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("socket.create_connection", unreachable)
    monkeypatch.setattr("fastmim.system.hub.getproxies", dict)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
