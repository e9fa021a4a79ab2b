"""The commands `finetune`, `predict`, `segment`, `detect`, `probe` and `embed`."""

from __future__ import annotations

import functools
from typing import Annotated

from cyclopts import Parameter

import fastmim
from fastmim.cli.app import OPTIONS, AsFlags, ConfigFile, DryRun, Options, Overwrite, app, given
from fastmim.errors import DONE
from fastmim.transfer.classify.predict_settings import PredictConfig
from fastmim.transfer.classify.settings import FinetuneConfig
from fastmim.transfer.detect.settings import DetectConfig
from fastmim.transfer.features.settings import EmbedConfig, ProbeConfig
from fastmim.transfer.segment.settings import SegmentConfig


@app.command
def finetune(settings: Annotated[FinetuneConfig, AsFlags] | None = None, *, options: Options = OPTIONS) -> int:
    """Train a classifier end to end from pre-trained weights, or from scratch. The same command again resumes."""
    return options.call(fastmim.finetune, settings, "at step {step} of {total_steps}", on_devices=True)


@app.command
def predict(
    settings: Annotated[PredictConfig, AsFlags] | None = None,
    *,
    config: ConfigFile = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> int:
    """Classify images with a fine-tuned classifier: the most probable classes of each image, in a file."""
    fastmim.predict(overwrite=overwrite, dry_run=dry_run, **given(settings, config))
    return DONE


@app.command
def segment(
    settings: Annotated[SegmentConfig, AsFlags] | None = None,
    *,
    predict: Annotated[
        str | None,
        Parameter(
            help="Do not train, but segment these images with the segmenter in --weights: label images and pictures "
            "in the new folder --out."
        ),
    ] = None,
    options: Options = OPTIONS,
) -> int:
    """Train a network that gives a class to each pixel, or segment images with it. The same command again resumes."""
    function = functools.partial(fastmim.segment, predict_images=predict)
    return options.call(function, settings, "at step {step} of {total_steps}", on_devices=predict is None)


@app.command
def detect(
    settings: Annotated[DetectConfig, AsFlags] | None = None,
    *,
    predict: Annotated[
        str | None,
        Parameter(
            help="Do not train, but find the objects of these images with the detector in --weights: a file in COCO's "
            "format and pictures in the new folder --out."
        ),
    ] = None,
    options: Options = OPTIONS,
) -> int:
    """Train a network that finds objects, or find those of images with it. The same command again resumes."""
    function = functools.partial(fastmim.detect, predict_images=predict)
    return options.call(function, settings, "at step {step} of {total_steps}", on_devices=predict is None)


@app.command
def probe(settings: Annotated[ProbeConfig, AsFlags] | None = None, *, options: Options = OPTIONS) -> int:
    """Measure frozen features on labelled images, by kNN or a linear probe."""
    return options.call(fastmim.probe, settings, "", on_devices=True)


@app.command
def embed(settings: Annotated[EmbedConfig, AsFlags] | None = None, *, options: Options = OPTIONS) -> int:
    """Write the features of any number of images to a file. The same command again resumes."""
    return options.call(fastmim.embed, settings, "after {num_read} of {num_images} images", on_devices=True)
