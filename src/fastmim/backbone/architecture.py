"""A timm architecture: making its models, finding the image sizes that they take, and resizing their weights."""

from __future__ import annotations

import copy
import json
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import islice
from typing import Any, Literal, NamedTuple

import timm
import torch
from timm.models import get_model_args, get_model_input_config
from torch import Tensor, nn

from fastmim.backbone import published
from fastmim.backbone.initial import init_sincos
from fastmim.backbone.maps import last_map, nearest_grid
from fastmim.backbone.position_tables import fit_tables, list_tables, resample_tables
from fastmim.backbone.surgery import list_blocks, num_kept, skip_blocks
from fastmim.errors import RequestError, RunError, first_line, shown
from fastmim.system.hub import only_if_reachable

_Sizing = Literal["method", "argument", "none"]
_LARGEST = 8192  # pixels
_DROP_PATH = 0.1
_NEAR = 0.15  # how far the size of the model's input may be from the image size, as a share of it
_RESERVED = {"features_only", "img_size", "in_chans", "num_classes"}
_RESERVED |= {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}  # timm fetches


@dataclass(frozen=True)
class Fit:
    """A model's input, map and trained parameters at one image size."""

    input_size: int  # side of the images that the model is given
    grid: int  # side of the map that the backbone returns
    width: int
    norm: bool  # whether the map carries the final norm
    num_blocks: int
    skipped: tuple[str, ...]  # names of the blocks that return their input
    frozen: frozenset[str]  # names of the parameters that the map does not depend on, or that timm keeps fixed


class DryRun(NamedTuple):
    """A model on the meta device and the shape of its map."""

    model: nn.Module
    size: int
    features: Tensor  # (2, D, h, h)
    norm: bool


@dataclass
class _Found:
    """What has been found out about an architecture."""

    bare: nn.Module | None = None
    sizing: _Sizing | None = None
    fits: dict[tuple[int, float], Fit] = field(default_factory=dict)
    native_sizes: dict[int, int | None] = field(default_factory=dict)


@lru_cache(maxsize=16)
def _found(key: str) -> _Found:
    """One for all architectures of a key: a run makes the same one many times over."""
    return _Found()


@dataclass(frozen=True)
class Architecture:
    """A timm architecture without its classifier: name, further arguments and image channels."""

    name: str
    args: dict[str, Any]
    in_chans: int = 3

    def __deepcopy__(self, memo: object) -> Architecture:
        return self  # immutable, and backbones are copied often

    @property
    def chans(self) -> dict[str, int]:
        """`in_chans` as an argument of timm; empty for timm's default of 3."""
        return {} if self.in_chans == 3 else {"in_chans": self.in_chans}

    @cached_property
    def _found(self) -> _Found:
        try:
            return _found(json.dumps([self.name, self.args, self.in_chans], sort_keys=True))
        except TypeError:  # an argument that is no plain value, such as a function
            return _Found()

    @property
    def bare(self) -> nn.Module:
        """The model at timm's default size, on the meta device; RequestError if timm refuses `args`."""
        if self._found.bare is None:
            self._found.bare = self._make_bare()
        return self._found.bare

    def _make_bare(self) -> nn.Module:
        if "in_chans" in self.args:
            raise RequestError("args in_chans: expected none, because images have three channels, RGB; drop it")
        if taken := sorted(_RESERVED & self.args.keys()):
            raise RequestError(f"args {', '.join(taken)}: expected only arguments that fastmim does not set; drop it")
        try:
            with torch.device("meta"):
                model = self._make()
            if self.args and not model.feature_info:
                raise ValueError("the model has no blocks")
            return model
        except Exception as error:  # timm refuses by TypeError, assert, KeyError and more
            if not self.args:
                raise
            raise RequestError(
                f"args {self.args}: {first_line(error)}; expected arguments that timm's {self.name} takes, "
                f"such as embed_dim and depth of a ViT; correct or drop them"
            ) from error

    @property
    def reduction(self) -> int:
        """The stride of the model's last map."""
        info: Any = self.bare.feature_info
        return int(info[-1]["reduction"])

    @property
    def sizing(self) -> _Sizing:
        """How the model is told its input size: by `set_input_size`, by the argument img_size, or not at all."""
        if self._found.sizing is None:
            self._found.sizing = self._find_sizing()
        return self._found.sizing

    def _find_sizing(self) -> _Sizing:
        if hasattr(self.bare, "set_input_size"):
            return "method"
        try:
            with torch.device("meta"):
                self._make(img_size=128)
        except TypeError:
            return "none"
        except Exception:  # it knows the argument but refuses the size
            return "argument"
        return "argument"

    def accepts(self, **more: Any) -> bool:
        """Whether the model takes these arguments."""
        try:
            with torch.device("meta"):
                self._make(**more)
        except (TypeError, AssertionError):  # unknown, or refused
            return False
        return True

    def drop_path_rate(self, rate: float | None) -> float:
        """The stochastic depth rate: `rate`; if None, 0.1 for models that support it and 0 for others.

        Raises:
            RequestError: the model has no stochastic depth.
        """
        if rate == 0 or self.accepts(drop_path_rate=_DROP_PATH):
            return _DROP_PATH if rate is None else rate
        if rate is None:
            return 0.0
        raise RequestError(f"drop_path is {rate:g}, and {self.name} has no drop path; set it to 0")

    def create(self, size: int, *, pretrained: bool = False, **more: Any) -> nn.Module:
        """Make the model for images of `size` pixels.

        Args:
            pretrained: Load timm's published weights; otherwise they are random, a plain ViT's position embedding
                sines and cosines.
            more: Further arguments of timm, such as num_classes for a model with a classifier.

        Raises:
            RunError: the published weights cannot be loaded.
        """
        try:
            overlay = published.cached(self.name) if pretrained else {}
            cached = {"pretrained_cfg_overlay": overlay} if overlay else {}
            with only_if_reachable() if pretrained and not overlay else nullcontext():
                model = self._make(pretrained=pretrained, **self._at(size), **cached, **more)
        except Exception as error:
            if not pretrained:
                raise
            raise RunError(
                f"pretrained weights of {self.name}: {first_line(error)}; expected them in timm's cache or on the "
                f"network: {published.remedy(self.name)}"
            ) from error
        # By the method where there is one: only it fits Swin's windows to the map (7 at 224 px, 4 at 128).
        model = self.resize(model, None, size) if self.sizing == "method" else model
        if not pretrained:
            init_sincos(model)
        return model

    def resize(self, model: nn.Module, old: int | None, new: int) -> nn.Module:
        """Resize a model's weights from one image size (None: timm's default) to another, in place where timm can.

        Raises:
            RequestError: they cannot be resized; the model is unchanged.
        """
        if self.sizing == "none" or old == new:
            return model
        if self.sizing == "method":
            resizable: Any = model
            tables = list_tables(model)
            with _quiet():
                resizable.set_input_size(img_size=new)
            resample_tables(model, tables)
            return model
        # Other models get their size in the constructor only. timm resamples weights while it loads published ones,
        # so these are passed as published. Where it fails, `fit_tables` resamples them.
        state = model.state_dict()
        headless = {"num_classes": 0, "classifier": None, "label_offset": 0}
        published = {"state_dict": dict(state), "input_size": (self.in_chans, old, old), **headless}
        try:
            with torch.device(next(model.parameters()).device):
                try:
                    resized = self._make(img_size=new, pretrained=True, pretrained_cfg_overlay=published)
                except Exception:  # timm raises several kinds for mismatched shapes
                    resized = self._make(img_size=new)
                    resized.load_state_dict(fit_tables(state, resized, new / (old or new)))
        except (ValueError, RuntimeError) as error:
            raise RequestError(
                f"{self.name}: weights for {old} px cannot be brought to {new} px, as {first_line(error)}; expected "
                f"one size throughout; drop the stages or choose another backbone"
            ) from error
        return resized.train(model.training)

    @cached_property
    def whole(self) -> nn.Module:
        """The model that timm makes from the plain name, classifier included, on the meta device."""
        with torch.device("meta"), _quiet():
            return timm.create_model(self.name, **self.chans)

    def native_size(self, size: int) -> int | None:
        """The input size that timm gives the plain name.

        None with `args`, as no plain name then makes the model, or if weights for `size` cannot be resized to it.
        """
        if self.args:
            return None
        native_sizes = self._found.native_sizes
        if size not in native_sizes:
            native: int | None = get_model_input_config(self.whole)["input_size"][-1]
            try:
                self.resize(self._blank(size), size, native or size)
            except RequestError:
                native = None
            native_sizes[size] = native
        return native_sizes[size]

    def arguments(self, model: nn.Module) -> dict[str, Any]:
        """The arguments with which timm makes `model` again, at its present size."""
        now = get_model_args(model)
        names = sorted(now.keys() - {"global_pool", "in_chans"})
        return {**self.args, **{name: now[name] for name in names}, **self.chans}

    def fit(self, img_size: int, encoder_depth: float = 1.0) -> Fit:
        """Fit the model to images of this size; RequestError if it cannot take the size or the depth."""
        fits, key = self._found.fits, (img_size, encoder_depth)
        if key not in fits:
            fits[key] = self._find_fit(img_size, encoder_depth)
        return fits[key]

    def _find_fit(self, img_size: int, encoder_depth: float) -> Fit:
        model, size, features, norm = self.nearest(img_size)
        self._check_window(model, size)
        blocks = list_blocks(model)
        skipped = tuple(blocks[num_kept(len(blocks), encoder_depth) :])
        if skipped:
            skip_blocks(model, skipped)
            shape, features = features.shape, torch.empty(0)
            with suppress(Exception):  # layers after a skipped change of shape may fail
                features = last_map(model, self._images(size), norm=norm)
            if features.shape != shape:
                raise RequestError(
                    f"encoder_depth {encoder_depth} leaves out {skipped[0]} and what follows in {self.name}, which "
                    f"give the map its shape: expected a greater share; raise encoder_depth"
                )
        trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        gradients = torch.autograd.grad(features.sum(), tuple(trainable.values()), allow_unused=True)
        trained = {name for name, grad in zip(trainable, gradients, strict=True) if grad is not None}
        frozen = frozenset(name for name, _ in model.named_parameters() if name not in trained)
        grid = nearest_grid(img_size, features.shape[-1], own=size == img_size)
        return Fit(size, grid, features.shape[1], norm, len(blocks), skipped, frozen)

    def nearest(self, img_size: int) -> DryRun:
        """A dry run at the nearest multiple of the stride that the model takes, else at the nearest size it takes."""
        self._check_size(img_size)
        low, high = math.ceil(img_size * (1 - _NEAR)), math.floor(img_size * (1 + _NEAR))
        sizes = sorted(range(low, high + 1), key=lambda size: (size % self.reduction > 0, abs(size - img_size)))
        others = sorted(range(32, 513, 8), key=lambda size: (size % 16 > 0, abs(size - img_size)))
        for run in filter(None, map(self._dry_run, sizes)):
            return run
        taken = [str(run.size) for run in islice(filter(None, map(self._dry_run, others)), 3)]
        raise RequestError(
            f"{self.name} cannot take images of {img_size} px: expected a size near {', '.join(taken) or '(none)'} "
            f"px; choose one, or another backbone"
        )

    def takes(self, size: int) -> bool:
        """Whether the model takes images of this size without resampling."""
        self._check_size(size)
        return self._dry_run(size) is not None

    def _check_size(self, size: int) -> None:
        """Raise RequestError for sizes at which even the shapes take minutes."""
        if size > _LARGEST:
            raise RequestError(f"img_size is {shown(size)}; expected at most {_LARGEST} pixels for {self.name}")

    def _dry_run(self, size: int) -> DryRun | None:
        """A dry run at one size; None if the model refuses it."""
        try:
            model = self._blank(size)
        except RequestError:  # the arguments are wrong at any size
            raise
        except Exception:  # each family raises its own kind
            return None
        for norm in (True, False):
            with suppress(Exception):
                return DryRun(model, size, last_map(model, self._images(size), norm=norm), norm)
        return None

    def _check_window(self, model: nn.Module, size: int) -> None:
        """Raise RequestError if timm would silently clip the window in `args`, or pad the map for it."""
        window = self.args.get("window_size")
        side = getattr(getattr(model, "patch_embed", None), "grid_size", (0,))[0]
        if isinstance(window, int) and side % window:
            fitting = ", ".join(str(n) for n in range(2, side + 1) if side % n == 0)
            raise RequestError(
                f"window_size is {window}, which does not fit the map of {side} x {side} at {size} px; expected one of "
                f"{fitting}: take one of them, or another img_size"
            )

    def _images(self, size: int) -> Tensor:
        return torch.zeros(2, self.in_chans, size, size, device="meta")

    def _blank(self, size: int) -> nn.Module:
        """The model for images of `size` pixels, on the meta device."""
        with torch.device("meta"):
            at_size = self._at(size)
            model = self._make(**at_size) if at_size else copy.deepcopy(self.bare)
            return self.resize(model, None, size) if self.sizing == "method" else model

    def _at(self, size: int) -> dict[str, int]:
        """The input size as a constructor argument, for models without `set_input_size`.

        Also for models whose `args` set a window: it is meant for this size, while `set_input_size` would take it
        for one at timm's default size and scale it with the map.
        """
        return {"img_size": size} if self.sizing == "argument" or "window_size" in self.args else {}

    def _make(self, **more: Any) -> nn.Module:
        with _quiet():
            return timm.create_model(self.name, **{"num_classes": 0, **self.args, **self.chans, **more})


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress timm's log messages about resampled weights and the warnings from its interpolation."""
    logger = logging.getLogger("timm")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
