"""The backbone: any timm model as an encoder that returns one feature map, at any image size it can take."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastmim.backbone.architecture import Architecture
from fastmim.backbone.attention import choose_attention
from fastmim.backbone.attention_maps import attention_maps
from fastmim.backbone.initial import init_sincos
from fastmim.backbone.maps import (
    drops_tokens,
    inner_map,
    inner_maps,
    last_map,
    map_and_prefix,
    no_tokens,
    resample,
    returns_prefix,
    visible_tokens,
)
from fastmim.backbone.names import resolve
from fastmim.backbone.patches import multiply_patches
from fastmim.backbone.surgery import (
    checkpoint_activations,
    disable_drop_path,
    replace_strides,
    skip_blocks,
    untrained_head,
)
from fastmim.errors import RequestError


class Backbone(nn.Module):
    """A timm model without its classifier: images -> the last feature map of the encoder.

    The map carries the model's final norm wherever timm can apply it. Parameters that the map does not depend on
    (skipped blocks, parts that only the classifier uses) require no gradient and keep their initial values.

    If the model cannot take `img_size` (128 px in patches of 14), images are resampled to the nearest size that
    it can (126 px). Both sizes span the same picture, so each cell of the map still covers its own share of it;
    padding or cropping would shift the map against the targets. For the same reason a map that does not divide
    the image into whole HOG cells (9 x 9) is resampled to the nearest one that does (8 x 8).

    Args:
        name: One of `timm.list_models()`, with or without a pretrained tag.
        img_size: Side of the square images in pixels.
        in_chans: Image channels.
        encoder_depth: Share of the blocks to run, above 0 and at most 1; the last blocks are skipped.
        pretrained: Start from timm's published weights (from the network or timm's cache).
        args: Further arguments of the timm model, such as {"patch_size": 4, "embed_dim": 96}.

    Raises:
        RequestError: an unknown name or argument, a size or a depth that the model cannot take.
        RunError: the pretrained weights could not be loaded.

    Example:
        >>> fastmim.Backbone("resnet18", img_size=128)(images).shape  # images: (B, 3, 128, 128), normalised
        torch.Size([2, 512, 4, 4])
    """

    width: int
    """Channels D of the map."""
    grid: int
    """Cells along a side of the map; divides `img_size`."""
    stride: int
    """Pixels of the image along a side of one cell of the map."""
    input_size: int
    """Side of the images that the timm model receives: `img_size`, or the nearest size that it can take."""
    num_blocks: int
    """Number of blocks over all stages; 0 if the model does not list its blocks."""
    trained_blocks: int
    """Number of blocks that run: the first ones."""
    untrained_blocks: tuple[str, ...]
    """timm's names of the blocks that `encoder_depth` skips."""
    untrained: frozenset[str]
    """timm's names of the parameters that are not trained: the map does not depend on them, or timm fixes them."""

    def __init__(
        self,
        name: str,
        *,
        img_size: int = 128,
        in_chans: int = 3,
        encoder_depth: float = 1.0,
        pretrained: bool = False,
        args: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self._architecture = Architecture(resolve(name), dict(args or {}), in_chans)
        self._fit = self._architecture.fit(img_size, encoder_depth)
        self.img_size = img_size
        self.encoder_depth = encoder_depth
        self.model = self._architecture.create(self._fit.input_size, pretrained=pretrained)
        self._checkpoints_activations = self._fixes_positions = False
        self._settle()

    @property
    def name(self) -> str:
        """timm's name of the model, with the pretrained tag if one was given."""
        return self._architecture.name

    @property
    def args(self) -> dict[str, Any]:
        """The further arguments that the model was made with."""
        return dict(self._architecture.args)

    @property
    def in_chans(self) -> int:
        """Channels C of the images."""
        return self._architecture.in_chans

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, S, S) normalised images, S = `img_size` -> (B, `width`, `grid`, `grid`)."""
        return resample(last_map(self.model, self._input(images), norm=self._fit.norm), self.grid)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The map as from `forward`, and the tokens beside it, such as a ViT's class token.

        Returns:
            (B, `width`, `grid`, `grid`), and (B, P, `width`) with P = 0 for models without such tokens.
        """
        if not self._returns_prefix:
            features = self(images)
            return features, no_tokens(features)
        features, prefix = map_and_prefix(self.model, self._input(images), norm=self._fit.norm)
        return resample(features, self.grid), prefix

    def _input(self, images: Tensor) -> Tensor:
        # Convolutions are faster with channels last, and a transformer's tokens have that layout anyway.
        return resample(images, self.input_size).contiguous(memory_format=torch.channels_last)

    def check_drops_tokens(self) -> None:
        """Raise RequestError unless `encode_visible` works on this backbone."""
        if not drops_tokens(self.model) or self.img_size != self.input_size:
            raise RequestError(
                f"masking is 'drop', and {self.name} at {self.img_size} px cannot leave tokens out; expected a plain "
                f"ViT such as vit_small_patch16_224, at a multiple of its patch and without pos_drop_rate; or take "
                f"masking in-place"
            )

    def encode_visible(self, images: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        """Encode the visible positions only, as if there were no others; see `check_drops_tokens`.

        Args:
            images: (B, C, S, S), normalised, S = `img_size`.
            visible: (B, n) int64, positions on the map in row-major order.

        Returns:
            (B, n, `width`), and the prefix tokens as from `encode`.
        """
        return visible_tokens(self.model, images, visible)

    def checkpoint_activations(self) -> None:
        """Store only each block's input for the backward pass and recompute the rest, from now on.

        Raises:
            RequestError: the model does not list its blocks.
        """
        checkpoint_activations(self.model, self.name)
        self._checkpoints_activations = True

    def fix_positions(self) -> None:
        """Keep a plain ViT's position embedding at MAE's sines and cosines, for every size, instead of training it.

        Other models are left unchanged. Loading weights, which may have learned theirs, undoes this.
        """
        self._fixes_positions = True
        self._settle()

    def learn_positions(self) -> None:
        """Train the position embedding from now on, and interpolate it for other sizes; undoes `fix_positions`."""
        self._fixes_positions = False
        self._settle()

    @property
    def num_maps(self) -> int:
        """Number of maps for `inner_map`: the blocks of a ViT, the stages of a hierarchical model."""
        feature_info: Any = self.model.feature_info
        return len(feature_info)

    def inner_map(self, images: Tensor, block: int) -> tuple[Tensor, Tensor | None]:
        """The map after a given block, on the model's own grid, and the class token at that depth.

        Args:
            images: (B, C, S, S), normalised, S = `img_size`.
            block: 0 to `num_maps` - 1.

        Returns:
            (B, D, h, h), and (B, D) or None if the model has no class token; D is that block's width.
        """
        return inner_map(self.model, resample(images, self.input_size), block, norm=self._fit.norm)

    def inner_maps(self, images: Tensor) -> list[Tensor]:
        """The maps after every block, see `inner_map`."""
        return inner_maps(self.model, resample(images, self.input_size), norm=self._fit.norm)

    def attention_maps(self, images: Tensor) -> tuple[list[Tensor], int]:
        """What each block of a plain ViT attends to, see `attention_maps.attention_maps`; and its prefix tokens.

        Raises:
            RequestError: it is no plain ViT.
        """
        maps = attention_maps(self.model, resample(images, self.input_size))
        return maps, int(getattr(self.model, "num_prefix_tokens", 0))

    def set_input_size(self, img_size: int) -> None:
        """Take images of another size from now on; timm resamples the weights that depend on it.

        Position embeddings are interpolated (fixed ones computed anew), windows keep their share of the map. The new
        weights are a fixed linear function of the old ones, so an optimiser's moments can be resampled by the same
        call.

        Raises:
            RequestError: the model cannot take the size, or its stride would change; nothing is changed then.
        """
        fit = self._architecture.fit(img_size, self.encoder_depth)
        if img_size != self.stride * fit.grid:
            raise RequestError(
                f"{self.name} has stride {self.stride} at {self.img_size} px and {img_size // fit.grid} at "
                f"{img_size} px: expected one stride throughout; choose sizes that are multiples of {self.stride}"
            )
        self.model = self._architecture.resize(self.model, self._fit.input_size, fit.input_size)
        self._fit, self.img_size = fit, img_size
        self._settle()

    def no_weight_decay(self) -> set[str]:
        """Names, relative to this module, of the parameters that timm excludes from weight decay."""
        return {f"model.{name}" for name in getattr(self.model, "no_weight_decay", set)()}

    def arguments(self, *, as_is: bool = False) -> dict[str, Any]:
        """The arguments with which `timm.create_model(name, **arguments)` loads `native_state_dict` strictly.

        A plain name whose weights can be resized to timm's default size needs none (or only `in_chans`, if not 3).
        Otherwise, and if `as_is`, they are those of the model at its present size, without classifier.
        """
        if as_is or self._architecture.native_size(self._fit.input_size) is None:
            return self._architecture.arguments(self.model)
        return dict(self._architecture.chans)

    def native_state_dict(self, *, as_is: bool = False) -> dict[str, Tensor]:
        """The weights under timm's names for `timm.create_model(name, **arguments())`.

        For a plain name they are resampled to timm's default size and completed with an untrained classifier,
        unless `as_is`. Parameters in `untrained` have their initial values.
        """
        model = copy.deepcopy(self.model)
        native_size = None if as_is else self._architecture.native_size(self._fit.input_size)
        if native_size is None:
            return dict(model.state_dict())
        bare = self._architecture.resize(model, self._fit.input_size, native_size).state_dict()
        return {**bare, **untrained_head(self._architecture.whole.state_dict(), bare)}

    def load_native_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load weights from `native_state_dict`, resampled to this backbone's size; a classifier is ignored.

        Weights that are already of this size are loaded unchanged.

        Raises:
            RequestError: they are another model's, or cannot be resized.
        """
        size = self._fit.input_size
        if any(name in state and state[name].shape != now.shape for name, now in self.model.state_dict().items()):
            size = self._architecture.native_size(size) or size
        model = self._architecture.create(size)
        own = model.state_dict().keys()
        try:
            model.load_state_dict({name: tensor for name, tensor in state.items() if name in own})
        except RuntimeError as error:
            raise RequestError(
                f"these weights are not those of {self.name} at {size} px ({' '.join(str(error).split())[:200]}): "
                f"expected the same model, arguments and size; take other weights"
            ) from error
        device, training = next(self.model.parameters()).device, self.model.training
        self.model = self._architecture.resize(model.to(device).train(training), size, self._fit.input_size)
        self.learn_positions()

    def _settle(self) -> None:
        """Apply this backbone's depth, checkpointing and frozen parameters to a new or resized timm model."""
        fit = self._fit
        self.width, self.grid, self.stride = fit.width, fit.grid, self.img_size // fit.grid
        self.input_size, self.num_blocks = fit.input_size, fit.num_blocks
        self.untrained_blocks, self.untrained = fit.skipped, fit.frozen
        self.trained_blocks = fit.num_blocks - len(fit.skipped)
        skip_blocks(self.model, fit.skipped)
        choose_attention(self.model)
        replace_strides(self.model)
        multiply_patches(self.model)
        if self._checkpoints_activations:
            checkpoint_activations(self.model, self.name)
        if "drop_path_rate" not in self.args:
            disable_drop_path(self.model)
        self._returns_prefix = returns_prefix(self.model)
        if self._fixes_positions and init_sincos(self.model):
            self.untrained |= {"pos_embed"}
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name not in self.untrained)
