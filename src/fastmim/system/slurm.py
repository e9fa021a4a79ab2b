"""A batch script for Slurm, whose job is requeued until its run has ended."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from fastmim.errors import STOPPED, RequestError

COMMANDS = ("pretrain", "finetune")
_TIME = re.compile(r"(\d+-)?\d+(:\d{2}){0,2}")

_SCRIPT = """\
#!/bin/bash
# Submit with: sbatch {file}
# Slurm warns the run {warning} seconds before the time is up: it saves, ends with status {stopped}, and is requeued.
# A job that Slurm preempts, or whose node fails, starts again too, and goes on from its last checkpoint.
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node={tasks}
{gpus}#SBATCH --cpus-per-task={cpus}
#SBATCH --time={time}
#SBATCH --signal=USR1@{warning}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={name}-%j.log

export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK  # srun does not take it from the job
srun fastmim {words}
status=$?
if [ $status -eq {stopped} ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $status
"""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a job asks of Slurm."""

    nodes: int = 1
    gpus_per_node: int = 8
    """0 for a job on CPUs, with one task on each node."""
    cpus_per_task: int = 8
    """Cores for each GPU: its training process and its data workers."""
    time: str = "24:00:00"
    name: str = "fastmim"
    warning: int = 180
    """Seconds before the end at which Slurm sends SIGUSR1, for the last save."""

    def __post_init__(self) -> None:
        for key, least in (("nodes", 1), ("gpus_per_node", 0), ("cpus_per_task", 1), ("warning", 1)):
            if getattr(self, key) < least:
                raise RequestError(f"{key} is {getattr(self, key)}; expected {least} or more")
        if not _TIME.fullmatch(self.time):
            raise RequestError(f"time is {self.time!r}; expected Slurm's form, such as 24:00:00 or 2-12:00:00")
        if not re.fullmatch(r"[\w.-]+", self.name):
            raise RequestError(f"name is {self.name!r}; expected letters, digits, dots, dashes and underscores")


def script(job: Job, words: Sequence[str], *, file: str) -> str:
    """The text of the batch script.

    Args:
        job: What it asks of Slurm.
        words: The command's words, without `fastmim`.
        file: The script's name, for its first comment.

    Raises:
        RequestError: the command does not run on several processes, or starts them itself.
    """
    if not words or words[0] not in COMMANDS:
        raise RequestError(
            f"the command is {words[0]!r}; expected one of {', '.join(COMMANDS)}"
            if words
            else "there is no command; expected one after --, such as -- pretrain --data packed/ --out runs/big"
        )
    if any(word.partition("=")[0] == "--devices" for word in words):
        raise RequestError("the command has --devices; expected none: Slurm starts a process for each GPU")
    return _SCRIPT.format(
        file=shlex.quote(file),
        name=job.name,
        nodes=job.nodes,
        tasks=job.gpus_per_node or 1,
        gpus=f"#SBATCH --gpus-per-node={job.gpus_per_node}\n" if job.gpus_per_node else "",
        cpus=job.cpus_per_task,
        time=job.time,
        warning=job.warning,
        words=shlex.join(words),
        stopped=STOPPED,
    )
