"""The `slurm` command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from fastmim.cli.app import AsFlags, Overwrite, app
from fastmim.errors import DONE, RequestError
from fastmim.system import files
from fastmim.system.slurm import Job, script
from fastmim.system.text import printable


@app.command
def slurm(
    *words: Annotated[str, Parameter(allow_leading_hyphen=True)],
    job: Annotated[Job | None, AsFlags] = None,
    out: Path = Path("job.sbatch"),
    overwrite: Overwrite = False,
) -> int:
    """Write a batch script that runs a command on a Slurm cluster, and requeues it until it has ended.

    For example: fastmim slurm --nodes 4 --gpus-per-node 8 -- pretrain --data packed/ --out runs/big

    Parameters
    ----------
    words
        The command, after `--`: pretrain or finetune with its settings.
    out
        The script to write.
    """
    text = script(job or Job(), words, file=str(out))
    if files.exists(out) and not overwrite:
        raise RequestError(f"out is {out}, which exists; expected a new file: take another name, or --overwrite")
    try:
        files.write_text(out, text)
    except OSError as error:
        raise RequestError(f"out is {out}: {error.strerror or error}; expected a file that can be written") from None
    print(printable(f"wrote {out}; submit it with: sbatch {out}"))
    return DONE
