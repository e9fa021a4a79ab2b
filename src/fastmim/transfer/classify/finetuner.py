"""The trainable module of fine-tuning: the classifier at its start, augmentation, loss, and averaged weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastmim import weights
from fastmim.backbone import Classifier
from fastmim.data import augment
from fastmim.data.mixing import Mix, erase
from fastmim.training.sharding import part
from fastmim.transfer.classify.settings import FinetuneConfig
from fastmim.transfer.start import Start


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """The device's half of the augmentation: uint8 crops -> normalised, erased and mixed images with soft targets."""

    mean: Tensor
    std: Tensor
    flip: bool
    reprob: float
    mix: Mix

    @classmethod
    def of(
        cls,
        config: FinetuneConfig,
        num_classes: int,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str = "cpu",
    ) -> Preparation:
        """The one that a config asks for, for pixels of this mean and deviation (0 to 1)."""
        mix = Mix(
            mixup=config.mixup,
            cutmix=config.cutmix,
            smoothing=config.smoothing,
            num_classes=num_classes,
            device=device,
        )
        return cls(
            mean=torch.tensor(mean, device=device),
            std=torch.tensor(std, device=device),
            flip=config.flip,
            reprob=config.reprob,
            mix=mix,
        )

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Turn "images", "labels" and "keys" of `loader.load` into the arguments of `Finetuner.forward`."""
        if self.flip:
            images = augment.prepare(batch, self.mean, self.std)["images"]
        else:
            images = augment.normalise(batch["images"], self.mean, self.std)
        images = erase(images, batch["keys"], self.reprob)
        images, targets = self.mix(images, batch["labels"], batch["keys"])
        return {"images": images, "targets": targets}


class Finetuner(nn.Module):
    """A classifier with its loss and, optionally, the exponential moving average of its weights.

    The average is part of the module, so checkpoints hold it and a resumed run continues it. (timm's ModelEmaV3 has
    another warm-up, and its average would change the results of existing runs.)

    Args:
        classifier: The classifier to train.
        ema: Decay per step; None for no average.
    """

    def __init__(self, classifier: Classifier, *, ema: float | None = None) -> None:
        super().__init__()
        self.classifier = classifier
        self.ema = ema
        self.averaged = copy.deepcopy(classifier).requires_grad_(False) if ema else None

    @property
    def result(self) -> Classifier:
        """The classifier to evaluate and export: the average if there is one."""
        return self.averaged or self.classifier

    def parameter_groups(self, *, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
        """The classifier's; the average is not trained."""
        return self.classifier.parameter_groups(weight_decay=weight_decay, layer_decay=layer_decay)

    def forward(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Cross entropy with soft targets.

        Args:
            images: (B, 3, S, S) normalised.
            targets: (B, C), rows summing to 1.

        Returns:
            "loss": float32 scalar.
        """
        logits = self.classifier(images).float()
        return {"loss": -(targets * logits.log_softmax(dim=1)).sum(dim=1).mean()}

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Move the average, if there is one, towards the weights after a step, counted from 1.

        A young average forgets faster, so that the first values do not dominate it: the decay is at most
        (1 + step) / (10 + step), as in TensorFlow's ExponentialMovingAverage.
        """
        if self.averaged is None or self.ema is None:
            return
        decay = min(self.ema, (1 + step) / (10 + step))
        own, averaged = (
            {name: part(tensor) for name, tensor in module.state_dict().items()}
            for module in (self.classifier, self.averaged)
        )
        floats = [name for name, tensor in own.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([averaged[name] for name in floats], [own[name] for name in floats], 1 - decay)
        for name in own.keys() - set(floats):
            averaged[name].copy_(own[name])


def build_classifier(config: FinetuneConfig, start: Start, *, num_classes: int, resuming: bool) -> Classifier:
    """Make the classifier at its start.

    Args:
        resuming: Do not load the weights, because a checkpoint replaces them.

    Raises:
        RequestError: the weights do not fit, or the model cannot take the size.
        RunError: timm's weights cannot be loaded.
    """
    classifier = Classifier(
        start.backbone,
        num_classes=num_classes,
        img_size=config.img_size,
        args=start.arguments,
        drop_path=config.drop_path,
        pretrained=start.kind == "timm" and not resuming,
        own_pooling=start.kind == "timm",
    )
    if config.checkpoint_activations:
        classifier.checkpoint_activations()
    if start.kind == "file" and not resuming:
        backbone = weights.load_backbone(config.weights, img_size=classifier.input_size)
        classifier.load(backbone.state_dict(), fresh=start.fresh)
    return classifier
