"""The batch script of `fastmim slurm`; `make test-cluster` submits one to a real cluster."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest

from fastmim import cli


def slurm(*words: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["slurm", *words])
    return int(exit_.value.code or 0)


def test_the_script_asks_for_what_was_given(tmp_path: Path) -> None:
    out = tmp_path / "big job.sbatch"
    asked = ["--nodes", "4", "--gpus-per-node", "8", "--time", "2-12:00:00", "--name", "big", "--out", str(out)]
    command = ["pretrain", "--data", "my photos; rm -rf $HOME", "--out", "runs/big"]
    assert slurm(*asked, "--", *command) == 0
    lines = out.read_text().splitlines()
    options = dict(line.removeprefix("#SBATCH --").partition("=")[::2] for line in lines if line.startswith("#SBATCH"))
    assert options["nodes"] == "4" and options["ntasks-per-node"] == options["gpus-per-node"] == "8"
    assert options["time"] == "2-12:00:00" and options["signal"] == "USR1@180" and options["open-mode"] == "append"
    (started,) = [line for line in lines if line.startswith("srun ")]
    assert shlex.split(started) == ["srun", "fastmim", *command]
    assert subprocess.run(["bash", "-n", str(out)]).returncode == 0


@pytest.mark.parametrize("status", [0, 1, 75])
def test_the_job_is_requeued_after_75_only(tmp_path: Path, status: int) -> None:
    out = tmp_path / "job.sbatch"
    assert slurm("--gpus-per-node", "0", "--out", str(out), "--", "finetune", "--data", "labelled/") == 0
    for name, does in {"srun": f"exit {status}", "scontrol": 'echo "$@" > requeued'}.items():
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\n{does}\n")
        program.chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "17"}
    assert subprocess.run(["bash", str(out)], cwd=tmp_path, env=env).returncode == status
    requeued = tmp_path / "requeued"
    assert requeued.exists() == (status == 75)
    assert status != 75 or requeued.read_text() == "requeue 17\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "there is no command; expected one after --, such as -- pretrain --data"),
        (("--", "embed"), "the command is 'embed'; expected one of pretrain, finetune"),
        (("--", "pretrain", "--devices", "2"), "the command has --devices; expected none"),
        (("--nodes", "0", "--", "pretrain"), "nodes is 0; expected 1 or more"),
        (("--gpus-per-node", "-1", "--", "pretrain"), "gpus_per_node is -1; expected 0 or more"),
        (("--time", "soon", "--", "pretrain"), "time is 'soon'; expected Slurm's form, such as 24:00:00"),
        (("--name", "a b", "--", "pretrain"), "name is 'a b'; expected letters, digits"),
    ],
)
def test_wrong_requests(
    words: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert slurm("--out", str(tmp_path / "job"), *words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "job").exists()


def test_files_are_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "job"
    out.write_text("mine")
    assert slurm("--out", str(out), "--", "pretrain") == 2
    assert "which exists; expected a new file: take another name, or --overwrite" in capsys.readouterr().err
    assert slurm("--out", str(out), "--overwrite", "--", "pretrain") == 0 and "srun" in out.read_text()
    assert slurm("--out", str(tmp_path / "none/job"), "--overwrite", "--", "pretrain") in (0, 2)
