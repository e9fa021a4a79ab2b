"""How timm makes a model, how the model meets an image size, and how its weights go from one size to another."""

from __future__ import annotations

import copy
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any, Literal, NamedTuple

import timm
import torch
from timm.models import get_model_args, get_model_input_config
from torch import Tensor, nn

from fastmim.backbone.features import last_map, leave_out, list_blocks, nearest_grid, num_kept
from fastmim.backbone.position_tables import fit_tables
from fastmim.errors import RequestError, RunError

_NEAR = 0.15  # where a model cannot take the image size, how far from it another may be, as a share
_OURS = {"checkpoint_path", "features_only", "img_size", "in_chans", "num_classes", "pretrained"}


@dataclass(frozen=True)
class Fit:
    """How a model meets an image size."""

    input_size: int  # side of the images that the model is given
    grid: int  # side of the map that the backbone returns
    width: int
    norm: bool  # whether the map carries the final norm
    num_blocks: int
    left_out: tuple[str, ...]  # names of the blocks that pass their input on
    frozen: frozenset[str]  # names of the parameters that the map does not depend on, or that timm keeps fixed


class Trial(NamedTuple):
    """A run of a model on the meta device."""

    model: nn.Module
    size: int
    features: Tensor  # (2, D, h, h)
    norm: bool


@dataclass(frozen=True)
class Source:
    """One timm model without its classifier: name, further arguments and image channels."""

    name: str
    args: dict[str, Any]
    in_chans: int = 3
    _native_sizes: dict[int, int | None] = field(default_factory=dict, repr=False)

    def __deepcopy__(self, memo: object) -> Source:
        return self  # nothing in it changes, and copies of a backbone are made often

    @property
    def chans(self) -> dict[str, int]:
        """`in_chans` as an argument of timm, where it is not timm's own."""
        return {} if self.in_chans == 3 else {"in_chans": self.in_chans}

    @cached_property
    def bare(self) -> nn.Module:
        """The model at the size that timm gives it, shapes only; RequestError if timm refuses `args`."""
        if ours := sorted(_OURS & self.args.keys()):
            raise RequestError(f"args {', '.join(ours)}: expected only arguments that fastmim does not set; drop it")
        try:
            with torch.device("meta"):
                return self._make()
        except Exception as error:  # timm refuses by TypeError, assert, KeyError and more
            if not self.args:
                raise
            raise RequestError(
                f"args {self.args}: {first_line(error)}; expected arguments that timm's {self.name} takes, "
                f"such as embed_dim and depth of a ViT; correct or drop them"
            ) from error

    @property
    def reduction(self) -> int:
        """The model's own stride, of its last map."""
        info: Any = self.bare.feature_info
        return int(info[-1]["reduction"])

    @cached_property
    def sizing(self) -> Literal["method", "argument", "none"]:
        """How the model learns its input size: `set_input_size`, the argument img_size, or not at all."""
        if hasattr(self.bare, "set_input_size"):
            return "method"
        try:
            with torch.device("meta"):
                self._make(img_size=128)
        except TypeError:
            return "none"
        except Exception:  # the argument is known, the size impossible
            return "argument"
        return "argument"

    def accepts(self, **more: Any) -> bool:
        """Whether the model has these arguments."""
        try:
            with torch.device("meta"):
                self._make(**more)
        except TypeError:
            return False
        return True

    def create(self, size: int, *, pretrained: bool = False, **more: Any) -> nn.Module:
        """The model for images of `size`; RunError if published weights are asked for and cannot be had.

        Args:
            more: Further arguments of timm, such as num_classes for one with a classifier.
        """
        try:
            model = self._make(pretrained=pretrained, **self._at(size), **more)
        except Exception as error:
            if not pretrained:
                raise
            raise RunError(
                f"pretrained weights of {self.name}: {first_line(error)}; expected them in timm's cache or on the "
                f"network; go online once, or train from scratch"
            ) from error
        # The method, not the argument, since only it fits Swin's windows to the map (7 at 224 px, 4 at 128).
        return self.resize(model, None, size) if self.sizing == "method" else model

    def resize(self, model: nn.Module, old: int | None, new: int) -> nn.Module:
        """A model's weights brought from one size (None: timm's own) to another; in place where timm can.

        Raises:
            RequestError: timm cannot; the model is as it was.
        """
        if self.sizing == "none" or old == new:
            return model
        if self.sizing == "method":
            taught: Any = model
            with _quiet():
                taught.set_input_size(img_size=new)
            return model
        # The others learn their size only when made. timm resamples weights of another size as it loads
        # published ones, so it is given those at hand as published. Where it does not know how, `fit_tables`.
        state = model.state_dict()
        headless = {"num_classes": 0, "classifier": None, "label_offset": 0}
        published = {"state_dict": dict(state), "input_size": (self.in_chans, old, old), **headless}
        try:
            with torch.device(next(model.parameters()).device):
                try:
                    resized = self._make(img_size=new, pretrained=True, pretrained_cfg_overlay=published)
                except Exception:  # tensors of other shapes are refused in more than one way
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
        """The model that timm makes from the plain name, classifier included, shapes only."""
        with torch.device("meta"), _quiet():
            return timm.create_model(self.name, **self.chans)

    def native_size(self, size: int) -> int | None:
        """The input size that timm gives the plain name.

        None if there are `args`, so no plain name, or timm cannot bring weights for `size` to that size.
        """
        if self.args:
            return None
        if size not in self._native_sizes:
            native: int | None = get_model_input_config(self.whole)["input_size"][-1]
            try:
                self.resize(self._blank(size), size, native or size)
            except RequestError:
                native = None
            self._native_sizes[size] = native
        return self._native_sizes[size]

    def arguments(self, model: nn.Module) -> dict[str, Any]:
        """The arguments with which timm makes `model` again, as it is now."""
        now = get_model_args(model)
        return {**self.args, **{key: now[key] for key in now.keys() - {"global_pool", "in_chans"}}, **self.chans}

    def fit(self, img_size: int, encoder_depth: float = 1.0) -> Fit:
        """How the model meets images of this size; RequestError if it cannot, or not at this depth."""
        model, size, features, norm = self.nearest(img_size)
        self._check_window(model, size)
        blocks = list_blocks(model)
        left_out = tuple(blocks[num_kept(len(blocks), encoder_depth) :])
        if left_out:
            leave_out(model, left_out)
            shape, features = features.shape, torch.empty(0)
            with suppress(Exception):  # what follows a block that changes the shape fails in its own way
                features = last_map(model, self._images(size), norm=norm)
            if features.shape != shape:
                raise RequestError(
                    f"encoder_depth {encoder_depth} leaves out {left_out[0]} and what follows in {self.name}, which "
                    f"give the map its shape: expected a greater share; raise encoder_depth"
                )
        trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        gradients = torch.autograd.grad(features.sum(), tuple(trainable.values()), allow_unused=True)
        trained = {name for name, grad in zip(trainable, gradients, strict=True) if grad is not None}
        frozen = frozenset(name for name, _ in model.named_parameters() if name not in trained)
        grid = nearest_grid(img_size, features.shape[-1])
        return Fit(size, grid, features.shape[1], norm, len(blocks), left_out, frozen)

    def nearest(self, img_size: int) -> Trial:
        """A run at the nearest size of whole strides that the model takes; failing that, at the nearest it takes."""
        low, high = math.ceil(img_size * (1 - _NEAR)), math.floor(img_size * (1 + _NEAR))
        sizes = sorted(range(low, high + 1), key=lambda size: (size % self.reduction > 0, abs(size - img_size)))
        others = sorted(range(32, 513, 16), key=lambda size: abs(size - img_size))
        for trial in filter(None, map(self._try, sizes)):
            return trial
        taken = [str(trial.size) for trial in islice(filter(None, map(self._try, others)), 3)]
        raise RequestError(
            f"{self.name} cannot take images of {img_size} px: expected a size near {', '.join(taken) or '(none)'} "
            f"px; choose one, or another backbone"
        )

    def takes(self, size: int) -> bool:
        """Whether the model can be given images of this size as they are."""
        return self._try(size) is not None

    def _try(self, size: int) -> Trial | None:
        """A run at one size; None if the model refuses it."""
        try:
            model = self._blank(size)
        except RequestError:  # of the arguments, whatever the size
            raise
        except Exception:  # every family refuses in its own way
            return None
        for norm in (True, False):
            with suppress(Exception):
                return Trial(model, size, last_map(model, self._images(size), norm=norm), norm)
        return None

    def _check_window(self, model: nn.Module, size: int) -> None:
        """RequestError if `args` ask for a window that timm would clip, or pad the map for, in silence."""
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
        """`create` without values."""
        with torch.device("meta"):
            at_size = self._at(size)
            model = self._make(**at_size) if at_size else copy.deepcopy(self.bare)
            return self.resize(model, None, size) if self.sizing == "method" else model

    def _at(self, size: int) -> dict[str, int]:
        """The input size as an argument, for models that learn it no other way.

        Also for one whose `args` choose a window: that is meant for this size, while `set_input_size` would
        take it for a window at timm's own and scale it with the map.
        """
        return {"img_size": size} if self.sizing == "argument" or "window_size" in self.args else {}

    def _make(self, **more: Any) -> nn.Module:
        with _quiet():
            return timm.create_model(self.name, **{"num_classes": 0, **self.args, **self.chans, **more})


def first_line(error: Exception) -> str:
    """The first line of an error, or its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what timm logs about resampled weights, and the warnings that its interpolation draws."""
    logger = logging.getLogger("timm")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
