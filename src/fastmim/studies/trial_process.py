"""The process of a trial: `python -m fastmim.studies.trial_process FOLDER/trial.json`.

It makes the runs in `trial.json` in order. A run that is done leaves `FOLDER/<run>.json`, so that the same call resumes
after an interruption. Standard input is a pipe from the study: when it closes, the study has ended, and the run saves
and stops as on SIGTERM.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from fastmim.errors import DONE, FAILED, REFUSED, STOPPED, RequestError, RunError
from fastmim.studies.trial import FILE, result_file
from fastmim.system import files
from fastmim.system.run_directory import RunDirectory
from fastmim.system.signals import interrupt


def run_trial(folder: Path) -> int:
    """Make the runs that are not done yet and return the exit status."""
    for name, settings in files.read_json(folder / FILE).items():
        if result_file(folder, name).exists():
            continue
        began = time.perf_counter()
        result = _run(name, settings)
        if result is None:
            return STOPPED
        files.write_json(result_file(folder, name), result | {"wall_seconds": time.perf_counter() - began})
    return DONE


def _run(name: str, settings: dict[str, Any]) -> dict[str, Any] | None:
    """A run's results; None if a signal stopped it."""
    if name == "pretrain":
        from fastmim.pretraining import pretrain

        trained = pretrain(**settings)
        return training_cost(Path(settings["out"])) if trained.finished else None
    if name == "probe":
        from fastmim.transfer.features.probe import probe

        probed = probe(**settings, overwrite=True)
        return {"top1": probed.top1, "effective_rank": probed.effective_rank, "method": settings["method"]}
    from fastmim.transfer.classify.finetune import finetune

    tuned = finetune(**settings)
    return {"top1": tuned.top1} | training_cost(Path(settings["out"])) if tuned.finished else None


def training_cost(run: Path) -> dict[str, float]:
    """Steps, images, device-seconds and images/s of a training run, from its metrics.jsonl.

    Evaluating and saving are not counted; steps repeated after an interruption are counted once.
    """
    steps = images = 0
    seconds = 0.0
    for line in RunDirectory(run).read_metrics():
        if "seconds_per_step" in line:
            seconds += line["seconds_per_step"] * (line["step"] - steps)
            steps, images = line["step"], line["images"]
    return {"steps": steps, "images": images, "device_seconds": seconds, "images_per_s": images / max(seconds, 1e-9)}


def _stop_with_the_study() -> None:
    """Send this process SIGTERM when standard input closes."""

    def wait() -> None:
        while os.read(0, 1024):
            pass
        interrupt(signal.SIGTERM)

    threading.Thread(target=wait, name="standard input", daemon=True).start()


def main() -> None:
    _stop_with_the_study()
    try:
        status = run_trial(Path(sys.argv[1]).parent)
    except (RequestError, RunError) as error:
        print(f"fastmim: {' '.join(str(error).split())}", file=sys.stderr)
        status = REFUSED if isinstance(error, RequestError) else FAILED
    sys.exit(status)


if __name__ == "__main__":
    main()
