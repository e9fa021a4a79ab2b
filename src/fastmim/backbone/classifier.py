"""A timm model with a new classifier, initialised from pre-trained weights of any image size or at random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from timm.layers import trunc_normal_
from timm.models import get_model_args
from torch import Tensor, nn

from fastmim.backbone.architecture import Architecture
from fastmim.backbone.attention import choose_attention
from fastmim.backbone.layers import parameter_groups
from fastmim.backbone.maps import resample
from fastmim.backbone.names import resolve
from fastmim.backbone.patches import multiply_patches
from fastmim.backbone.surgery import checkpoint_activations, list_blocks, replace_strides
from fastmim.errors import RequestError

# Arguments that follow from the image size or the classifier, so they do not identify the architecture.
_DERIVED = ("img_size", "num_classes", "in_chans", "global_pool", "fc_norm")
_HEAD_STD = 2e-5  # as in the fine-tuning of MAE and FastMIM


class Classifier(nn.Module):
    """A timm model with a new classifier: images -> logits.

    Where timm's ViT would classify the class token, the mean of the other tokens is classified instead, after a norm
    that starts anew and replaces the pre-trained one (He et al., MAE, CVPR 2022, and FastMIM): masked image modeling
    trains those tokens, but not the class token. The classifying layer starts near zero, with a deviation of 2e-5.

    Args:
        name: One of `timm.list_models()`.
        num_classes: C.
        img_size: Side of the square images in pixels; images are resampled if the model needs another size, as
            in `Backbone`.
        args: Further arguments of the timm model, such as those in a weights file's metadata: any that follow from
            the image size or the classifier are ignored.
        drop_path: Stochastic depth rate of the last block, rising linearly up to it; if None, 0.1 for models that
            support it and 0 for others.
        pretrained: Start from timm's published weights.
        own_pooling: Keep timm's pooling.

    Raises:
        RequestError: an unknown name or argument, a size that the model cannot take, drop path that it lacks.
        RunError: the published weights could not be loaded.
    """

    def __init__(
        self,
        name: str,
        *,
        num_classes: int,
        img_size: int = 224,
        args: Mapping[str, Any] | None = None,
        drop_path: float | None = None,
        pretrained: bool = False,
        own_pooling: bool = False,
    ) -> None:
        super().__init__()
        given = {k: v for k, v in (args or {}).items() if k not in _DERIVED}
        self._in_chans = (args or {}).get("in_chans", 3)
        self._architecture = Architecture(resolve(name), given, self._in_chans)
        if _side((args or {}).get("img_size")) not in (None, img_size):
            # timm recorded the windows for another size; without them they keep their share of the map.
            given = {k: v for k, v in given.items() if k != "window_size"}
        resizable = Architecture(self._architecture.name, given, self._in_chans)
        self.img_size, self.num_classes = img_size, num_classes
        self.input_size = resizable.nearest(img_size).size
        self.drop_path = resizable.drop_path_rate(drop_path)
        rate = {"drop_path_rate": self.drop_path} if self.drop_path else {}
        pooling = {} if own_pooling else _mean_pooling(resizable)
        self.model = resizable.create(
            self.input_size, pretrained=pretrained, num_classes=num_classes, **rate, **pooling
        )
        choose_attention(self.model)
        replace_strides(self.model)
        multiply_patches(self.model)
        head = self.model.get_classifier()  # type: ignore[operator]
        if isinstance(head, nn.Linear):
            trunc_normal_(head.weight, std=_HEAD_STD)
            nn.init.zeros_(head.bias)

    @property
    def name(self) -> str:
        """timm's name of the model."""
        return self._architecture.name

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, S, S) normalised images, S = `img_size` -> (B, num_classes) logits."""
        return self.model(resample(images, self.input_size))

    def load(self, state: Mapping[str, Tensor], *, fresh: Sequence[str] = ()) -> None:
        """Load the weights of the same model without classifier, under timm's names, for `input_size`.

        Args:
            state: All tensors of the model except its classifier's.
            fresh: Names of blocks that keep their present values.

        Raises:
            RequestError: they are another model's.
        """
        kept = tuple(f"{block}." for block in fresh)
        bare = self._architecture.bare.state_dict().keys()
        replaced = bare - self.model.state_dict().keys()  # the final norm, where the mean has a norm of its own
        trained = {name: t for name, t in state.items() if not name.startswith(kept) and name not in replaced}
        try:
            missing, wrong = self.model.load_state_dict(trained, strict=False)
            wrong += [name for name in missing if name in bare and not name.startswith(kept)]
            if wrong:
                raise RuntimeError(f"{', '.join(wrong[:3])} on one side only")
        except RuntimeError as error:
            raise RequestError(
                f"these weights are not those of {self.name} at {self.input_size} px "
                f"({' '.join(str(error).split())[:200]}): expected the same model and arguments; take other weights"
            ) from error

    @property
    def num_blocks(self) -> int:
        """Number of blocks over all stages; 0 if the model does not list them."""
        return len(list_blocks(self.model))

    def checkpoint_activations(self) -> None:
        """Store only each block's input for the backward pass; RequestError if the model does not list its blocks."""
        checkpoint_activations(self.model, self.name)

    def arguments(self) -> dict[str, Any]:
        """The arguments with which `timm.create_model(name, **arguments)` makes this model again."""
        now = get_model_args(self.model)
        native = get_model_args(self._architecture.bare)
        same = {"global_pool", "in_chans"} & {key for key in now if now[key] == native.get(key)}
        return {**self._architecture.args, **{key: value for key, value in now.items() if key not in same}}

    def parameter_groups(self, *, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
        """Parameter groups for AdamW with an "lr_scale" for each layer, as in `layers.parameter_groups`.

        Biases, norms and the parameters that the model names (tokens, position embeddings) get no weight decay. Nor do
        Swin's relative-position tables, 24 in Swin-B, which FastMIM's code decays by 0.05 in fine-tuning.

        Raises:
            RequestError: timm cannot tell the model's layers apart.
        """
        return parameter_groups(self.model, self.name, weight_decay=weight_decay, layer_decay=layer_decay)


def _mean_pooling(architecture: Architecture) -> dict[str, Any]:
    """timm's arguments for a ViT that classifies the mean of its tokens, if it would classify the class token."""
    bare = architecture.bare
    pools_token = hasattr(bare, "fc_norm") and get_model_args(bare).get("global_pool") == "token"
    pooling = {"global_pool": "avg"}
    return pooling if pools_token and architecture.accepts(**pooling) else {}


def _side(img_size: Any) -> int | None:
    """timm's img_size, a number or a pair, as the side of a square."""
    return img_size[0] if isinstance(img_size, list | tuple) else img_size
