"""From what `--data` names to uint8 batches, and their preparation on the device."""

from fastmim.data.augment import decode_center, decode_crop, denormalise, normalise, prepare
from fastmim.data.bad_images import BadImages
from fastmim.data.decode import BadImage
from fastmim.data.labelled import Labelled, limit_labels, open_labelled
from fastmim.data.loader import StepSampler, load, steps_per_epoch
from fastmim.data.sources import Source, open_source

__all__ = [
    "BadImage",
    "BadImages",
    "Labelled",
    "Source",
    "StepSampler",
    "decode_center",
    "decode_crop",
    "denormalise",
    "limit_labels",
    "load",
    "normalise",
    "open_labelled",
    "open_source",
    "prepare",
    "steps_per_epoch",
]
