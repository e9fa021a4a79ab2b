"""The commands. Flags and help come from the config dataclasses; torch is imported only when work begins."""

from __future__ import annotations

import errno
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, NoReturn

import yaml
from cyclopts import App, CycloptsError, Parameter

from fastmim.bench.settings import BenchConfig, CostConfig
from fastmim.cli.arguments import DONE, FAILED, REFUSED, asked_for, note_given, stopped
from fastmim.cli.study import study
from fastmim.data.packs.settings import PackConfig
from fastmim.errors import RequestError, RunError
from fastmim.method.settings import PretrainConfig
from fastmim.transfer.classify.settings import FinetuneConfig
from fastmim.transfer.features.settings import EmbedConfig, ProbeConfig

_NO_NEGATIVE = Parameter(negative="")

app = App(
    name="fastmim",
    help="Pre-train any vision backbone on your own images: masked image modeling, made fast.",
    default_parameter=Parameter(negative_iterable=()),
)

app.config = (note_given,)
app.command(study)


@app.command
def pretrain(
    settings: Annotated[PretrainConfig, Parameter(name="*")] | None = None,
    *,
    config: Path | None = None,
    overwrite: Annotated[bool, _NO_NEGATIVE] = False,
    dry_run: Annotated[bool, _NO_NEGATIVE] = False,
) -> int:
    """Pre-train a backbone by masked image modeling. The same command again resumes.

    Parameters
    ----------
    config
        YAML file of settings; flags override it. A run's own config.yaml will do.
    overwrite
        Delete the run that --out holds and start anew.
    dry_run
        Print the resolved settings and the plan, and stop.
    """
    given = asked_for(settings, config)
    from fastmim import pretraining

    result = pretraining.pretrain(overwrite=overwrite, dry_run=dry_run, **given)
    if dry_run or result.finished:
        return DONE
    return stopped(f"at step {result.step} of {result.total_steps}", overwrite=overwrite)


@app.command
def finetune(
    settings: Annotated[FinetuneConfig, Parameter(name="*")] | None = None,
    *,
    config: Path | None = None,
    overwrite: Annotated[bool, _NO_NEGATIVE] = False,
    dry_run: Annotated[bool, _NO_NEGATIVE] = False,
) -> int:
    """Train a classifier end to end from pre-trained weights, or from none. The same command again resumes.

    Parameters
    ----------
    config
        YAML file of settings; flags override it. A run's own config.yaml will do.
    overwrite
        Delete the run that --out holds and start anew.
    dry_run
        Print the resolved settings and the plan, and stop.
    """
    given = asked_for(settings, config)
    from fastmim.transfer.classify import finetune as finetuning

    result = finetuning.finetune(overwrite=overwrite, dry_run=dry_run, **given)
    if dry_run or result.finished:
        return DONE
    return stopped(f"at step {result.step} of {result.total_steps}", overwrite=overwrite)


@app.command
def pack(
    settings: Annotated[PackConfig, Parameter(name="*")] | None = None,
    *,
    config: Path | None = None,
    overwrite: Annotated[bool, _NO_NEGATIVE] = False,
    dry_run: Annotated[bool, _NO_NEGATIVE] = False,
    verify: Annotated[bool, _NO_NEGATIVE] = False,
) -> int:
    """Make images small once, for loading them several times faster. The same command again resumes.

    Parameters
    ----------
    config
        YAML file of settings; flags override it.
    overwrite
        Replace the pack that is there, and what an interrupted call left.
    dry_run
        Print what would be packed, and stop.
    verify
        Compare a pack with its checksums instead: fastmim pack --verify packed/
    """
    given = asked_for(settings, config)
    if verify and given.keys() != {"data"}:
        raise RequestError(f"out is {given.get('out', 'not given')}; expected one directory with --verify")
    from fastmim.data.packs import packing

    if verify:
        print(f"{given['data']}: all {packing.verify(given['data']):,} images match their checksums")
        return DONE
    result = packing.pack(overwrite=overwrite, dry_run=dry_run, **given)
    if dry_run or result.finished:
        return DONE
    return stopped(f"after {result.num_read} of {result.num_source} images", overwrite=overwrite)


@app.command
def backbones(
    pattern: str = "*",
    *,
    check: Annotated[bool, _NO_NEGATIVE] = False,
    max_parameters: float = 150,
    img_size: int = 128,
    out: Path = Path("docs/backbones.md"),
) -> int:
    """List the backbones that can be pre-trained, with stride, width and parameters.

    Parameters
    ----------
    pattern
        Names to list, such as 'swin*'.
    check
        Really build each one and make one training step; writes a table of what passed and why the rest did not.
    max_parameters
        Leave larger models out, in millions of parameters.
    img_size
        Image side in pixels.
    out
        Where --check writes its table; a .jsonl beside it keeps each outcome, so that what passed is not tried again.
    """
    from fastmim.studies import survey

    if check:
        journal = out.with_suffix(".jsonl")
        return survey.check(pattern, max_parameters=max_parameters * 1e6, img_size=img_size, out=out, journal=journal)
    return survey.table(pattern, max_parameters=max_parameters * 1e6, img_size=img_size)


@app.command(name="recipes")
def list_recipes() -> int:
    """List the published recipes with size, epochs, batch, and the result as published."""
    from fastmim import recipes

    print(recipes.describe())
    return DONE


@app.command
def visualise(
    run: Path,
    *,
    images: str | None = None,
    out: Path = Path("reconstructions.png"),
    num_images: int = 8,
    seed: int = 0,
) -> int:
    """Draw what a run has learnt to see: image, masked image, target, prediction.

    Parameters
    ----------
    run
        Run directory.
    images
        Images to draw, anything that --data takes. [default: the run's own]
    out
        PNG file to write.
    num_images
        How many images, spread evenly over the source.
    seed
        Decides the masks.
    """
    from fastmim.method import visualise

    visualise.visualise_run(run, images=images, out=out, num_images=num_images, seed=seed)
    print(f"wrote {out}")
    return DONE


@app.command
def probe(
    settings: Annotated[ProbeConfig, Parameter(name="*")] | None = None,
    *,
    config: Path | None = None,
    dry_run: Annotated[bool, _NO_NEGATIVE] = False,
) -> int:
    """Measure frozen features of weights on labelled images, by kNN or a linear probe.

    Parameters
    ----------
    config
        YAML file of settings; flags override it.
    dry_run
        Print what would be probed, and stop.
    """
    given = asked_for(settings, config)
    from fastmim.transfer.features import probe as probing

    probing.probe(dry_run=dry_run, **given)
    return DONE


@app.command
def embed(
    settings: Annotated[EmbedConfig, Parameter(name="*")] | None = None,
    *,
    config: Path | None = None,
    overwrite: Annotated[bool, _NO_NEGATIVE] = False,
    dry_run: Annotated[bool, _NO_NEGATIVE] = False,
) -> int:
    """Write the features of any number of images to a file. The same command again resumes.

    Parameters
    ----------
    config
        YAML file of settings; flags override it.
    overwrite
        Replace the file that --out names, and anything that an interrupted embedding left.
    dry_run
        Print what would be embedded, and stop.
    """
    given = asked_for(settings, config)
    from fastmim.transfer.features import embed as embedding

    result = embedding.embed(overwrite=overwrite, dry_run=dry_run, **given)
    if dry_run or result.finished:
        return DONE
    return stopped(f"after {result.num_read} of {result.num_images} images", overwrite=overwrite)


@app.command
def export(
    run: Path,
    *,
    to: str,
    out: Path,
    img_size: int | None = None,
    overwrite: Annotated[bool, _NO_NEGATIVE] = False,
) -> int:
    """Write a run's backbone for other tools, load it again and compare.

    Parameters
    ----------
    run
        Run directory or weights file.
    to
        timm (a directory that timm and transformers load, or one .safetensors file), state-dict (.safetensors),
        onnx or torch-export (.pt2).
    out
        The directory or file to write.
    img_size
        Image side in pixels. [default: the architecture's own]
    overwrite
        Replace an earlier export.
    """
    from fastmim.weights import export

    print(export.export(run, to=to, out=out, img_size=img_size, overwrite=overwrite).describe())
    return DONE


@app.command
def convert(
    file: Path,
    *,
    out: Path,
    backbone: str | None = None,
    backbone_args: dict[str, Any] | None = None,
    overwrite: Annotated[bool, _NO_NEGATIVE] = False,
) -> int:
    """Turn another project's checkpoint (FastMIM, MAE, SimMIM, timm) into a weights file. Nothing in it is run.

    Parameters
    ----------
    file
        The checkpoint: a PyTorch pickle or safetensors.
    out
        The .safetensors file to write; `pretrain --init`, `finetune --weights` and the others take it.
    backbone
        Any timm model. [default: found from the tensors]
    backbone_args
        Arguments for timm.create_model, such as --backbone-args.depth 4.
    overwrite
        Replace the file that is there.
    """
    from fastmim.weights import convert

    given = {name: yaml.safe_load(str(value)) for name, value in (backbone_args or {}).items()}
    print(convert.convert(file, out=out, backbone=backbone, backbone_args=given, overwrite=overwrite).describe())
    return DONE


@app.command
def bench(settings: Annotated[BenchConfig, Parameter(name="*")] | None = None) -> int:
    """Measure data path, HOG, training step, methods and whole runs here; writes records, tables and a chart."""
    from fastmim.bench.bench import bench as run_bench

    run_bench(settings or BenchConfig())
    return DONE


@app.command
def cost(settings: Annotated[CostConfig, Parameter(name="*")]) -> int:
    """Estimate device-hours for some images and epochs, from what `fastmim bench` has measured."""
    from fastmim.bench.cost import print_cost

    print_cost(settings)
    return DONE


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command and exit with its status: 0 done, 1 failed, 2 the request is wrong, 75 stopped after saving."""
    with warnings.catch_warnings():
        warnings.showwarning = _warn  # type: ignore[assignment]
        sys.exit(_run(arguments))


def _run(arguments: list[str] | None) -> int:
    try:
        return app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except (CycloptsError, RequestError) as error:
        return _complain(str(error), REFUSED)
    except RunError as error:
        return _complain(str(error), FAILED)
    except BrokenPipeError:  # `fastmim backbones | head`
        sys.stderr.close()
        return DONE
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return _complain(f"{error}; checkpoints are intact: free space and run the same command to resume", FAILED)


def _complain(message: str, status: int) -> int:
    print(f"fastmim: {' '.join(message.split())}", file=sys.stderr)
    return status


def _warn(message: Warning | str, *where: Any) -> None:
    """Python's way would show the line of our source that warns."""
    print(f"fastmim: warning: {' '.join(str(message).split())}", file=sys.stderr)
