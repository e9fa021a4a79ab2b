"""One point of a study with one seed, in a process of its own: `python -m fastmim.studies.trial FOLDER/trial.json`.

The runs that `trial.json` names are made in its order. Each leaves `FOLDER/<run>.json` when it is done, so that the
same call goes on where an interrupted one was. Standard input is the leash: when it ends, the study is gone, and the
run is saved as if the study had sent SIGTERM.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from fastmim.errors import RequestError, RunError

DONE, FAILED, REFUSED, STOPPED = 0, 1, 2, 75
FILE = "trial.json"


def run_trial(folder: Path) -> int:
    """Make the runs that are not done yet; the exit status."""
    for name, settings in json.loads((folder / FILE).read_text()).items():
        if result_file(folder, name).exists():
            continue
        began = time.perf_counter()
        result = _run(name, settings)
        if result is None:
            return STOPPED
        write_json(result_file(folder, name), result | {"wall_seconds": time.perf_counter() - began})
    return DONE


def result_file(folder: Path, name: str) -> Path:
    """Where a run's numbers are once it is done."""
    return folder / f"{name}.json"


def _run(name: str, settings: dict[str, Any]) -> dict[str, Any] | None:
    """A run's numbers; None if a signal stopped it."""
    if name == "pretrain":
        from fastmim.pretraining import pretrain

        trained = pretrain(**settings)
        return training_cost(Path(settings["out"])) if trained.finished else None
    if name == "probe":
        from fastmim.transfer.features.probe import probe

        probed = probe(**settings)
        return {"top1": probed.top1, "effective_rank": probed.effective_rank, "method": settings["method"]}
    from fastmim.transfer.classify.finetune import finetune

    tuned = finetune(**settings)
    return {"top1": tuned.top1} | training_cost(Path(settings["out"])) if tuned.finished else None


def training_cost(run: Path) -> dict[str, float]:
    """Steps, images, seconds that training had the device for, and images/s, from a run's metrics.jsonl.

    Evaluations and saving are left out; what was done twice because of an interruption is counted once.
    """
    steps = images = 0
    seconds = 0.0
    for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        if "seconds_per_step" in line:
            seconds += line["seconds_per_step"] * (line["step"] - steps)
            steps, images = line["step"], line["images"]
    return {"steps": steps, "images": images, "device_seconds": seconds, "images_per_s": images / max(seconds, 1e-9)}


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file that appears whole or not at all."""
    partial = path.with_name(f".{path.name}.tmp")
    with partial.open("w") as file:
        file.write(json.dumps(content, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_json(path: Path) -> Any:
    """What `write_json` wrote."""
    return json.loads(path.read_text())


def _obey_leash() -> None:
    """Ask this process to stop when standard input ends."""

    def wait() -> None:
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="leash", daemon=True).start()


def main() -> None:
    _obey_leash()
    try:
        status = run_trial(Path(sys.argv[1]).parent)
    except (RequestError, RunError) as error:
        print(f"fastmim: {' '.join(str(error).split())}", file=sys.stderr)
        status = REFUSED if isinstance(error, RequestError) else FAILED
    sys.exit(status)


if __name__ == "__main__":
    main()
