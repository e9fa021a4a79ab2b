"""The parts of `fastmim bench`: what each measures and records, and at which scale."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from fastmim.bench import corpus, data_path, end_to_end, finetune, flops, hog, records, steps
from fastmim.bench.cases import Case, cases
from fastmim.bench.settings import LARGE, BenchConfig
from fastmim.bench.timing import Times
from fastmim.data.sources import Source
from fastmim.system import devices
from fastmim.system.display import say


@dataclass(frozen=True)
class Scale:
    """The amount of work to measure."""

    device: str
    batch_size: int
    rounds: int
    num_images: int
    """JPEGs of the corpus."""
    num_others: int
    """PNGs, and WebPs."""
    num_large: int
    """Large JPEGs."""
    share_batch: int
    """Images per step where the share of a CPU's peak is measured; 0 elsewhere, whose steps are as large."""
    data_batch: int
    hog_batch: int
    run_steps: int
    """Steps of an end-to-end run."""

    @classmethod
    def of(cls, config: BenchConfig, device: str) -> Scale:
        """The scale that a config asks for on a device."""
        small = device == "cpu"
        if config.quick:
            return cls(device, config.batch_size or 2, config.rounds or 1, 16, 8, 2, 4 * small, 8, 4, 4)
        return cls(
            device=device,
            batch_size=config.batch_size or (16 if small else 256),
            rounds=config.rounds or (5 if small else 15),
            num_images=256 if small else 2048,
            num_others=64,
            num_large=8,
            share_batch=64 if small else 0,
            data_batch=data_path.BATCH,
            hog_batch=32 if small else 512,
            run_steps=16 if small else 60,
        )


def record_name(part: str, device: str) -> str:
    """The name of a part's record; reading images is the processor's work on any machine."""
    return f"bench-{part}" if device == "cpu" or part == "data" else f"bench-{part}-{device.partition(':')[0]}"


class Parts:
    """The parts by name, sharing a corpus and the device's peaks."""

    def __init__(self, config: BenchConfig, device: str, scratch: Path, console: Console) -> None:
        self._folder, self._precision, self._scale = config.records, config.precision, Scale.of(config, device)
        self._names = config.backbone_names(device)
        self._large = self._names[0] if config.backbones else LARGE
        self._scratch, self._console = scratch, console
        self._photos = scratch / "photos"
        self._tiers: dict[str, Source] = {}
        self._num_photographs = 0
        self._peaks: dict[str, float] = {}
        self.status = console.status("")
        """A spinner that names what is being measured, on a terminal."""
        self.run: dict[str, Callable[[], Path]] = {
            "data": self._data,
            "hog": self._hog,
            "step": self._step,
            "finetune": self._finetune,
            "end-to-end": self._end_to_end,
        }

    @contextmanager
    def timing(self, what: str) -> Iterator[None]:
        """Show what is being measured, then print how long it took."""
        start = time.monotonic()
        self.status.update(what.strip())
        yield
        say(self._console, f"{what}: {time.monotonic() - start:.0f} s")

    def _write(self, part: str, claim: str, summary: dict[str, Any], raw: dict[str, Any], **config: Any) -> Path:
        device = "cpu" if part == "data" else self._scale.device
        return records.write(
            self._folder,
            record_name(part, device),
            claim=claim,
            config={"rounds": self._scale.rounds, "threads": torch.get_num_threads()} | config,
            raw=raw,
            summary=summary,
            device=device,
        )

    def _data(self) -> Path:
        scale, tiers = self._scale, self._make_tiers()
        with self.timing("  writing other kinds of files"):
            others = corpus.make_others(
                self._photos, self._scratch, num_images=scale.num_others, num_large=scale.num_large
            )
        summary, times = data_path.measure(tiers, others, rounds=scale.rounds, batch=scale.data_batch)
        sizes = {name: corpus.mean_bytes(source) for name, source in (tiers | others).items()}
        return self._write(
            "data",
            "A folder and its packs are read with less CPU time than by Pillow and torchvision's transforms.",
            {"pipelines": summary},
            times.raw(),
            num_images=scale.num_images,
            num_others={name: len(source) for name, source in others.items()},
            num_photographs=self._num_photographs,
            crop_size=data_path.SIZE,
            batch_size=scale.data_batch,
            short_side=corpus.SHORT_SIDE,
            mean_bytes=sizes,
        )

    def _hog(self) -> Path:
        scale = self._scale
        rounds = scale.rounds * 3  # because they are short
        compiled = scale.device.startswith("cuda")
        summary, times = hog.measure(device=scale.device, batch_size=scale.hog_batch, rounds=rounds, compile=compiled)
        claim = "The HOG target takes a fraction of the time and memory of its one-hot form."
        return self._write(
            "hog", claim, {"forms": summary}, times.raw(), batch_size=scale.hog_batch, img_size=128, rounds=rounds
        )

    def _step(self) -> Path:
        scale, found, raw = self._scale, {}, {}
        for case in cases(self._names):
            with self.timing(f"  {case.name}"):
                found[case.name], times = self._measure_step(case, batch_size=scale.batch_size)
                raw[case.name] = times.raw()
        if scale.share_batch:
            case, name = Case(backbone=self._large), f"{Case(backbone=self._large).name}, batch {scale.share_batch}"
            with self.timing(f"  {name}"):
                found[name], times = self._measure_step(case, batch_size=scale.share_batch, alone=True)
                raw[name] = times.raw()
        claim = "A training step processes more images per second than its plain form of the same precision."
        summary = {"peak_tflops": self._measured_peaks(), "cases": found}
        return self._write("step", claim, summary, raw, batch_size=scale.batch_size)

    def _measure_step(self, case: Case, *, batch_size: int, alone: bool = False) -> tuple[dict[str, Any], Times]:
        return steps.measure(
            case,
            device=self._scale.device,
            batch_size=batch_size,
            rounds=self._scale.rounds,
            peaks=self._measured_peaks(),
            precision=self._precision,
            alone=alone,
        )

    def _finetune(self) -> Path:
        scale, source = self._scale, self._make_tiers()["folder"]
        names = f"{self._names[0]}, {finetune.SIZE} px, step", f"{finetune.SIZE} px, augmentation"
        with self.timing(f"  {names[0]}"):
            step, times = finetune.measure_step(
                self._names[0],
                device=scale.device,
                batch_size=scale.batch_size + scale.batch_size % 2,
                rounds=scale.rounds,
                peaks=self._measured_peaks(),
                precision=self._precision,
            )
        with self.timing(f"  {names[1]}"):
            augmentation, further = finetune.measure_augmentation(source, rounds=scale.rounds, batch=scale.data_batch)
        return self._write(
            "finetune",
            "Fine-tuning takes less time than in the plain form: a step, and the augmentation on the processor.",
            {"peak_tflops": self._measured_peaks(), "cases": dict(zip(names, (step, augmentation), strict=True))},
            dict(zip(names, (times.raw(), further.raw()), strict=True)),
            batch_size=scale.batch_size,
            num_images=scale.num_images,
            data_batch=scale.data_batch,
        )

    def _end_to_end(self) -> Path:
        scale = self._scale
        on_cpu = scale.device == "cpu"
        rounds = min(3 if on_cpu else 2, scale.rounds)
        settings: dict[str, Any] = {
            "backbone": "vit_tiny_patch16_224" if on_cpu else self._names[0],
            "backbone_args": end_to_end.SMALL if on_cpu else None,
            "batch_size": scale.data_batch if on_cpu else scale.batch_size,
            "steps": scale.run_steps,
            "rounds": rounds,
            "bf16": steps.forms(scale.device, self._precision)[-1].precision == "bf16",
        }
        summary, raw = end_to_end.measure(
            self._make_tiers(), Path(tempfile.mkdtemp(dir=self._scratch)), device=scale.device, **settings
        )
        return self._write(
            "end-to-end",
            "A run from the disk spends under a tenth of its time waiting for data.",
            {"tiers": summary},
            raw,
            **settings,
            num_workers=devices.resolve_workers(None),
        )

    def _make_tiers(self) -> dict[str, Source]:
        if not self._tiers:
            with self.timing("  cutting and packing photographs"):
                self._photos.mkdir()
                self._num_photographs = corpus.cut_corpus(self._photos, self._scale.num_images)
                self._tiers = corpus.make_tiers(self._photos, self._scratch)
        return self._tiers

    def _measured_peaks(self) -> dict[str, float]:
        if not self._peaks:
            more = ("fp16",) if self._scale.device.startswith("cuda") else ()
            self._peaks = {name: flops.matmul_tflops(self._scale.device, name) for name in ("float32", "bf16", *more)}
        return self._peaks
