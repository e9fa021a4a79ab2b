"""What a training step is measured on: a backbone with the settings of FastMIM, MAE or SimMIM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from fastmim.backbone import Backbone
from fastmim.backbone.maps import drops_tokens
from fastmim.method.mim import MIM
from fastmim.method.targets import TARGETS

_SIMMIM = {"mask_ratio": 0.6, "block": 32, "decoder": "linear", "loss": "l1"}
METHODS: dict[str, dict[str, Any]] = {
    "FastMIM 128": {},
    "FastMIM 128, tokens dropped": {"masking": "drop"},
    "MAE 224": {"img_size": 224, "target": "pixels", "masking": "drop", "more": {"decoder": (512, 8)}},
    "SimMIM 192": {"img_size": 192, "target": "rgb", "more": _SIMMIM},
    "SimMIM 224": {"img_size": 224, "target": "rgb", "more": _SIMMIM},
}
"""Fields of `Case` by the paper's settings; a decoder has width / 32 heads, 16 for MAE as in its paper."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model to train."""

    backbone: str
    img_size: int = 128
    target: str = "hog"
    masking: Literal["in-place", "drop"] = "in-place"
    backbone_args: Mapping[str, Any] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of `MIM`."""
    method: str = ""
    """The one of `METHODS` that the settings are, for the name."""

    @classmethod
    def of(cls, method: str, backbone: str, args: Mapping[str, Any] | None = None) -> Case:
        """A backbone with a method's settings."""
        return cls(backbone=backbone, backbone_args=args or {}, method=method, **METHODS[method])

    @property
    def name(self) -> str:
        """Its name in records and tables."""
        return f"{self.backbone}, {self.method or f'{self.img_size} px, {self.target}, {self.masking}'}"

    def build(self) -> MIM:
        """Build the model, always with the same weights.

        Raises:
            RequestError: tokens are to be dropped, which the backbone cannot do.
        """
        torch.manual_seed(0)
        return MIM(
            self.backbone,
            img_size=self.img_size,
            target=TARGETS[self.target],
            masking=self.masking,
            backbone_args=dict(self.backbone_args),
            **self.more,
        )


def cases(backbones: Sequence[str]) -> list[Case]:
    """Each backbone with FastMIM's settings; the first that can drop tokens also does; MAE on it, SimMIM on the next.

    SimMIM is published for Swin, which the second backbone is by default; it takes the only one if there is one.
    """
    found = [Case(backbone=name) for name in backbones]
    if drops_tokens(Backbone(backbones[0]).model):
        found += [Case(backbone=backbones[0], masking="drop"), Case.of("MAE 224", backbones[0])]
    return [*found, Case.of("SimMIM 192", backbones[:2][-1])]
