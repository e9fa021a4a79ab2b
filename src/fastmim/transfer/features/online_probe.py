"""The probe that runs during pre-training: held-out loss, kNN accuracy and effective rank.

Within one method and backbone, the held-out MIM loss predicts fine-tuning accuracy well, better than the training loss
(Xie et al., "On Data Scaling in Masked Image Modeling", arXiv 2206.04664). kNN accuracy is inherently low for masked
image modeling, but should rise. A falling effective rank indicates collapse.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fastmim import randomness
from fastmim.data.augment import normalise
from fastmim.data.center_crops import load_centers
from fastmim.data.labelled import Labelled
from fastmim.data.sources import Source
from fastmim.data.statistics import IMAGENET_MEAN, IMAGENET_STD
from fastmim.method.mim import MIM
from fastmim.training.evaluating import evaluating
from fastmim.transfer.features import scores
from fastmim.transfer.features.encoder import Encoder
from fastmim.transfer.features.extraction import extract, gather
from fastmim.transfer.features.scores import LabelledFeatures

MAX_TRAIN, MAX_VAL = 10_000, 2_000
"""Upper bounds on the labelled images used; from a larger set, evenly spaced ones are taken."""
NEIGHBOURS = 20


def measure(
    model: MIM,
    labelled: Labelled,
    *,
    seed: int,
    batch_size: int,
    num_workers: int = 0,
    bf16: bool = False,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> dict[str, float]:
    """Probe a model without changing it.

    Args:
        model: On its device; its weights, its modules' modes and the random generators are left as they are.
        labelled: Labelled images, preferably none that the model trains on.
        seed: Determines, with an image's position, the image's mask: the same at each call (for one image size).
        batch_size: Images at once.
        num_workers: Worker processes that read and crop; 0 uses the main process.
        bf16: Autocast to bfloat16.
        mean: Normalisation of the images, per channel, for pixels in [0, 1].
        std: Likewise.

    Returns:
        "probe_mim_loss", the mean over the validation images; "probe_knn", the top-1 accuracy of cosine kNN (k = 20)
        on average-pooled features of the last block; "probe_effective_rank", that of the validation features.

    Raises:
        RunError: no image can be read, or a worker process died.
    """
    train, val = features_of(
        model, labelled, batch_size=batch_size, num_workers=num_workers, bf16=bf16, mean=mean, std=std
    )
    [top1] = scores.knn(train, val, ks=(NEIGHBOURS,)).values()
    loss = held_out_loss(
        model,
        labelled.val,
        seed=seed,
        batch_size=batch_size,
        num_workers=num_workers,
        bf16=bf16,
        mean=mean,
        std=std,
    )
    return {"probe_mim_loss": loss, "probe_knn": top1, "probe_effective_rank": scores.effective_rank(val.features)}


def features_of(
    model: MIM,
    labelled: Labelled,
    *,
    batch_size: int,
    num_workers: int,
    bf16: bool,
    mean: Sequence[float],
    std: Sequence[float],
) -> tuple[LabelledFeatures, LabelledFeatures]:
    """Average-pooled features of the last block, of training and validation images; arguments as in `measure`."""
    encoder = Encoder(model.backbone, mean=mean, std=std)
    features = []
    for source, most in ((labelled.train, MAX_TRAIN), (labelled.val, MAX_VAL)):
        indices = _spread(source, most)
        batches = extract(encoder, source, indices=indices, batch_size=batch_size, num_workers=num_workers, bf16=bf16)
        found = gather(batches, source.origin)
        device = encoder.mean.device
        labels = torch.as_tensor(source.labels)[found.indices]
        features.append(LabelledFeatures(found.features.to(device), labels.to(device)))
    train, val = features
    return train, val


def held_out_loss(
    model: MIM,
    source: Source,
    *,
    seed: int,
    batch_size: int,
    num_workers: int,
    bf16: bool,
    mean: Sequence[float],
    std: Sequence[float],
) -> float:
    """Mean MIM loss over the images' central crops, with masks that depend on (seed, index) only."""
    device = next(model.parameters()).device
    means, deviations = (torch.tensor(values, device=device) for values in (mean, std))
    indices = _spread(source, MAX_VAL)
    batches = load_centers(
        source, size=model.backbone.img_size, batch_size=batch_size, indices=indices, num_workers=num_workers
    )
    total, count = torch.zeros((), device=device), 0
    for batch in batches:
        if not len(batch["indices"]):
            continue
        keys = randomness.image_keys(seed, 0, batch["indices"]).to(device)
        with evaluating(model), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            images = normalise(batch["images"].to(device), means, deviations)
            total += model(images, keys)["loss"] * len(images)  # every image hides equally many cells
        count += len(images)
    return total.item() / count


def describe(metrics: dict[str, float]) -> str:
    """Format the result of `measure` as one short line."""
    return (
        f"held-out loss {metrics['probe_mim_loss']:.4f}  kNN {metrics['probe_knn']:.1%}  "
        f"effective rank {metrics['probe_effective_rank']:.1f}"
    )


def _spread(source: Source, most: int) -> np.ndarray:
    """Return at most `most` positions, evenly spaced over the source."""
    return np.linspace(0, len(source) - 1, min(most, len(source))).round().astype(np.int64)
