"""A timm model as maps at several strides, for images of any height and width."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.models import get_model_input_config
from torch import Tensor, nn

from fastmim.backbone.architecture import Architecture
from fastmim.backbone.attention import choose_attention
from fastmim.backbone.layers import parameter_groups
from fastmim.backbone.maps import resample
from fastmim.backbone.names import resolve
from fastmim.backbone.patches import multiply_patches
from fastmim.backbone.position_tables import list_tables, resample_embedding
from fastmim.backbone.surgery import checkpoint_activations, disable_drop_path, list_blocks, replace_strides
from fastmim.backbone.windows import Windows
from fastmim.errors import RequestError

UNIT = 32
"""Images are padded to multiples of this many pixels."""
STRIDES = (4, 8, 16, 32)
# With these arguments, where a model knows them, it takes images of any size; `always_partition`: Swin's windows and
# shifts are then those of a large map in every stage, whatever size the model was made for.
_FLEXIBLE: tuple[dict[str, Any], ...] = (
    {"dynamic_img_size": True, "always_partition": True},
    {"dynamic_img_size": True},
    {},
)
_DERIVED = ("img_size", "num_classes", "in_chans", "global_pool", "fc_norm")  # from the image size or the classifier


class _Making(NamedTuple):
    """How a model is made, and which images it is then given."""

    architecture: Architecture
    size: int  # the side of the images that it is made for
    options: dict[str, Any]
    any_size: bool
    patch: tuple[int, int]  # the model sees every patch[1] pixels of an image as patch[0]
    dry: nn.Module  # made so, on the meta device


class MultiScale(nn.Module):
    """A timm model as maps at several strides, for images of any height and width.

    Hierarchical models give the last map of each stride from 4 to 32. Others have one stride (plain ViTs, mixers), and
    give the map after the last block, or after several.

    Images are padded with zeros, to the right and below, to multiples of 32 pixels, and the part of the maps that only
    covers padding is cut off. Patches whose side is not a power of two (14 pixels) are brought to the nearest one (16)
    by resampling the images (by 14/16), so that the strides hold for the images that are passed in. A model that timm
    makes for one size only sees all images padded to `img_size`, and can take no larger ones.

    A position embedding is resampled to `img_size` once, and in the forward pass for any other size, both as
    everywhere in fastmim. Windows keep the size that they have at timm's own image size, or that `args` give.

    Args:
        name: One of `timm.list_models()`.
        img_size: Side in pixels of the usual images, such as the crops in training.
        args: Further arguments of the timm model; those that follow from the classifier are ignored.
        drop_path: Stochastic depth rate of the last block, rising linearly up to it; if None, 0.1 for models that
            support it and 0 for others.
        pretrained: Start from timm's published weights.
        depths: Of a model with one stride, the blocks whose maps are given, counted from 0 in ascending order, or how
            many at equal distances, the last among them.
        window: Attention within windows of this side; see `Windows`.

    Raises:
        RequestError: an unknown name or argument, a size that the model cannot take, a model without such maps.
        RunError: the published weights cannot be loaded.
    """

    strides: tuple[int, ...]
    """Of the maps, in ascending order; equal for a model with one stride."""
    widths: tuple[int, ...]
    """Channels of the maps."""
    frozen: frozenset[str]
    """timm's names of the parameters that the maps do not depend on, or that timm keeps fixed."""

    def __init__(
        self,
        name: str,
        *,
        img_size: int = 512,
        args: Mapping[str, Any] | None = None,
        drop_path: float | None = None,
        pretrained: bool = False,
        depths: int | Sequence[int] = 1,
        window: int | None = None,
    ) -> None:
        super().__init__()
        making = _find_making(resolve(name), img_size, dict(args or {}))
        self._making, architecture = making, making.architecture
        self.img_size = _padded(img_size)
        self._choose_maps(depths)
        self.drop_path = architecture.drop_path_rate(drop_path)
        rate = {"drop_path_rate": self.drop_path} if self.drop_path else {}
        self.model = architecture.create(making.size, pretrained=pretrained, **rate, **making.options)
        if not self.drop_path:
            disable_drop_path(self.model)
        choose_attention(self.model)
        replace_strides(self.model)
        multiply_patches(self.model)
        self._windows = Windows(self.model, self.name, side=window) if window else None
        for parameter_name, parameter in self.model.named_parameters():
            parameter.requires_grad_(parameter_name not in self.frozen)

    @property
    def name(self) -> str:
        """timm's name of the model."""
        return self._making.architecture.name

    @property
    def num_blocks(self) -> int:
        """Number of blocks over all stages; 0 if the model does not list them."""
        return len(list_blocks(self.model))

    def arguments(self) -> dict[str, Any]:
        """The arguments with which `timm.create_model(name, **arguments)` makes this model again."""
        return self._making.architecture.arguments(self.model)

    @property
    def takes_any_size(self) -> bool:
        """Whether images may be larger than `img_size`."""
        return self._making.any_size

    @property
    def weights_size(self) -> int | None:
        """Side in pixels for which `load` expects weights; None if they may stay as they are (windows, ConvNets)."""
        making = self._making
        return making.size if "pos_embed" in list_tables(self.model) or not making.any_size else None

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, C, H, W) normalised images -> maps (B, widths[i], ceil(H / strides[i]), ceil(W / strides[i]))."""
        height, width = images.shape[-2:]
        sides = self._padded(height, width)
        padded = F.pad(images, (0, sides[1] - width, 0, sides[0] - height))
        maps = self._maps(resample(padded, self._seen(sides)).contiguous(memory_format=torch.channels_last))
        found = []
        for features, stride in zip(maps, self.strides, strict=True):
            fitted = resample(features, (sides[0] // stride, sides[1] // stride))
            found.append(fitted[..., : -(-height // stride), : -(-width // stride)])
        return found

    def load(self, state: Mapping[str, Tensor], *, fresh: Sequence[str] = ()) -> None:
        """Load the weights of the same model without classifier, under timm's names, for `weights_size`.

        Args:
            state: At least all tensors of the model that the maps depend on.
            fresh: Names of blocks that keep their present values.

        Raises:
            RequestError: they are another model's.
        """
        kept = tuple(f"{block}." for block in fresh)
        own = self.model.state_dict().keys()
        trained = {name: tensor for name, tensor in state.items() if name in own and not name.startswith(kept)}
        try:
            missing, _ = self.model.load_state_dict(trained, strict=False)
            if wrong := [n for n in missing if n not in self.frozen and not n.startswith(kept)]:
                raise RuntimeError(f"no {', '.join(wrong[:3])}")
        except RuntimeError as error:
            raise RequestError(
                f"these weights are not those of {self.name} ({' '.join(str(error).split())[:200]}): expected the same "
                f"model and arguments; take other weights"
            ) from error

    def checkpoint_activations(self) -> None:
        """Store only each block's input for the backward pass; RequestError if the model does not list its blocks."""
        checkpoint_activations(self.model, self.name)

    def parameter_groups(self, *, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
        """Parameter groups for AdamW, as in `layers.parameter_groups`, below a head whose "lr_scale" is 1.

        So the scale of the last block is `layer_decay`, as in the code of BEiT, MAE and ViTDet.

        Raises:
            RequestError: timm cannot tell the model's layers apart.
        """
        groups = parameter_groups(self.model, self.name, weight_decay=weight_decay, layer_decay=layer_decay)
        largest = max(group["lr_scale"] for group in groups)
        for group in groups:
            group["lr_scale"] *= layer_decay / largest
        return groups

    def _choose_maps(self, depths: int | Sequence[int]) -> None:
        """Choose the maps, on the meta device, and find the parameters that they depend on."""
        making, model = self._making, self._making.dry
        images = torch.zeros(2, making.architecture.in_chans, *self._seen((self.img_size,) * 2), device="meta")
        shapes = [found.shape for found in _maps(model, images, None)]
        strides = [_power_of_two(self.img_size / shape[-1]) for shape in shapes]
        if len(set(strides)) == 1:
            chosen = _choose_depths(self.name, len(shapes), depths)
        elif isinstance(depths, int):
            last = {stride: index for index, stride in enumerate(strides)}
            chosen = sorted(index for stride, index in last.items() if stride in STRIDES)
        else:
            raise RequestError(f"depths is {list(depths)}, and {self.name} has stages; expected none: drop it")
        if not chosen or not STRIDES[0] <= min(strides[i] for i in chosen) <= STRIDES[-1]:
            raise RequestError(
                f"{self.name} has maps of stride {', '.join(map(str, sorted(set(strides))))}; expected one of "
                f"{', '.join(map(str, STRIDES))}: take another backbone, such as swin_tiny_patch4_window7_224"
            )
        self._indices = chosen
        self.strides = tuple(strides[index] for index in chosen)
        self.widths = tuple(shapes[index][1] for index in chosen)
        trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        with torch.enable_grad():  # whoever loads a model for predictions may have turned it off
            total = torch.stack([found.sum() for found in _maps(model, images, chosen)]).sum()
            gradients = torch.autograd.grad(total, tuple(trainable.values()), allow_unused=True)
        trained = {name for name, grad in zip(trainable, gradients, strict=True) if grad is not None}
        self.frozen = frozenset(name for name, _ in model.named_parameters() if name not in trained)

    def _padded(self, height: int, width: int) -> tuple[int, int]:
        if self._making.any_size:
            return _padded(height), _padded(width)
        if max(height, width) > self.img_size:
            raise RequestError(
                f"an image has {height} x {width} pixels, and {self.name} takes {self.img_size} x {self.img_size} at "
                f"most: cut the image into windows (--test slide), or take another backbone"
            )
        return self.img_size, self.img_size

    def _seen(self, sides: tuple[int, int]) -> tuple[int, int]:
        """The size of the images that the model is given."""
        if not self._making.any_size:
            return self._making.size, self._making.size
        return _seen(sides[0], self._making.patch), _seen(sides[1], self._making.patch)

    def _maps(self, images: Tensor) -> list[Tensor]:
        """The chosen maps of images of a size that the model takes."""
        patch: Any = getattr(self.model, "patch_embed", None)
        own = getattr(patch, "grid_size", None)
        grid = tuple(side // self._making.patch[0] for side in images.shape[-2:])
        if self._windows:
            self._windows.grid = (grid[0], grid[1])
        if self._making.any_size and "pos_embed" in list_tables(self.model) and own != grid:
            with _embedding_at(self.model, (grid[0], grid[1])):
                return _maps(self.model, images, self._indices)
        return _maps(self.model, images, self._indices)


def _find_making(name: str, img_size: int, args: dict[str, Any]) -> _Making:
    """Find out, on the meta device, how the model is best made for images of `img_size`."""
    given = {key: value for key, value in args.items() if key not in _DERIVED}
    architecture = Architecture(name, given, args.get("in_chans", 3))
    patch = architecture.reduction, _power_of_two(architecture.reduction)
    wanted, native = _seen(_padded(img_size), patch), _side(args.get("img_size"))
    if native is None:
        native = get_model_input_config(architecture.bare)["input_size"][-1]
    size = wanted if "pos_embed" in list_tables(architecture.bare) else native
    for options in _FLEXIBLE:
        if dry := _flexible(architecture, size, options, _padded(img_size), patch):
            return _Making(architecture, size, options, True, patch, dry)
    if native != wanted:  # windows in the arguments are for `native`
        given.pop("window_size", None)
        architecture = Architecture(name, given, architecture.in_chans)
    run = architecture.nearest(wanted)
    return _Making(architecture, run.size, {}, False, patch, run.model)


def _flexible(
    architecture: Architecture, size: int, options: dict[str, Any], side: int, patch: tuple[int, int]
) -> nn.Module | None:
    """A model made for `size`, on the meta device, if it takes images of another height and width with its strides."""
    height, width = side, side + UNIT
    with suppress(Exception), torch.device("meta"):  # each family refuses in its own way
        model = architecture.create(size, **options)
        images = torch.zeros(2, architecture.in_chans, _seen(height, patch), _seen(width, patch))
        shapes = [found.shape for found in _maps(model, images, None)]
        strides = [_power_of_two(height / shape[-2]) for shape in shapes]
        pairs = [(shape, stride) for shape, stride in zip(shapes, strides, strict=True) if stride <= UNIT]
        if all(shape[-2:] == (height // stride, width // stride) for shape, stride in pairs):
            return model
    return None


def _choose_depths(name: str, num_maps: int, depths: int | Sequence[int]) -> list[int]:
    if isinstance(depths, int):
        return [max(0, round((n + 1) * num_maps / depths) - 1) for n in range(depths)]
    if list(depths) != sorted(set(depths)) or not 0 <= depths[0] <= depths[-1] < num_maps:
        raise RequestError(
            f"depths is {list(depths)}; expected ascending numbers of blocks of {name}, 0 to {num_maps - 1}"
        )
    return list(depths)


def _maps(model: nn.Module, images: Tensor, indices: list[int] | None) -> list[Tensor]:
    """Maps (B, D, h, w), before the final norm; all of them if `indices` is None. A small model may repeat some."""
    intermediates: Any = model.forward_intermediates
    different = None if indices is None else sorted(set(indices))
    found: list[Tensor] = intermediates(
        images, indices=different, norm=False, stop_early=True, output_fmt="NCHW", intermediates_only=True
    )
    return found if indices is None or different is None else [found[different.index(index)] for index in indices]


@contextmanager
def _embedding_at(model: Any, grid: tuple[int, int]) -> Iterator[None]:
    """Resample the position embedding to another grid within the block; its gradient reaches the parameter."""
    table, own = model.pos_embed, model.patch_embed.grid_size
    model._parameters["pos_embed"] = resample_embedding(table, own, grid)  # in place, as order matters to optimisers
    model.patch_embed.grid_size = grid
    try:
        yield
    finally:
        model._parameters["pos_embed"], model.patch_embed.grid_size = table, own


def _power_of_two(stride: float) -> int:
    """The nearest power of two, by ratio."""
    return int(2 ** round(math.log2(stride)))


def _padded(side: int) -> int:
    return -(-side // UNIT) * UNIT


def _seen(side: int, patch: tuple[int, int]) -> int:
    """The side of an image of `side` pixels, a multiple of `UNIT`, as the model sees it."""
    return side * patch[0] // patch[1]


def _side(img_size: Any) -> int | None:
    """timm's img_size, a number or a pair, as the side of a square."""
    return img_size[0] if isinstance(img_size, list | tuple) else img_size
