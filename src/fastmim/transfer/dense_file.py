"""A network on a backbone as a weights file: the backbone as timm loads it, the other layers beside, and facts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor, nn

from fastmim import weights
from fastmim.backbone.multiscale import MultiScale
from fastmim.errors import RequestError, first_line
from fastmim.weights.export import normalisation

_MOST = 8192


class Design(Protocol):
    """What identifies a network besides its backbone: a dataclass of JSON types, which weights files store."""

    @property
    def classes(self) -> list[str]:
        """Their names, in the order of their numbers."""

    @property
    def img_size(self) -> int:
        """Side of the usual images in pixels."""

    @property
    def window(self) -> int | None:
        """Side of the windows in a plain ViT's attention."""


Net = TypeVar("Net", bound=nn.Module)
Kept = TypeVar("Kept", bound=Design)


@dataclass(frozen=True)
class Opened(Generic[Net, Kept]):
    """A network from a weights file."""

    network: Net
    trunk: MultiScale
    design: Kept
    mean: list[float]
    std: list[float]
    range: str | None
    """That of the greys of the training images, as the setting `range` has it."""


@dataclass(frozen=True)
class Format(Generic[Net, Kept]):
    """How a kind of network is stored.

    Args:
        kind: What it is, "detector": the design's key in the metadata, and the prefix of the layers on the backbone.
        command: The command that trains it.
        backbone: Prefixes of the backbone's tensors in the network's state, under which timm's own names follow.
        design: The class of its design.
        check: Refuses a design that no network has, by ValueError.
        depths: The maps of a model with one stride that a design takes; see `MultiScale`.
        build: Makes the network of a design on a backbone.
    """

    kind: str
    command: str
    backbone: Sequence[str]
    design: Callable[..., Kept]
    check: Callable[[Kept], None]
    depths: Callable[[Kept], int | Sequence[int]]
    build: Callable[[MultiScale, Kept], Net]

    def save(self, path: Path, network: Net, trunk: MultiScale, design: Kept, *, about: Mapping[str, Any]) -> None:
        """Write a network; `--weights` of any command takes its backbone from the same file.

        Args:
            about: More facts for the metadata (JSON types): recipe, data, steps, mean, std.
        """
        tensors = {self._renamed(name): tensor.detach().cpu() for name, tensor in network.state_dict().items()}
        facts = {
            "architecture": trunk.name,
            "arguments": trunk.arguments(),
            "img_size": trunk.img_size,
            "num_blocks": trunk.num_blocks,
            "trained_blocks": trunk.num_blocks,
            "untrained": [],
            self.kind: asdict(design),  # type: ignore[call-overload]
        }
        weights.write(path, tensors, facts | dict(about))

    def load(self, source: str) -> Opened[Net, Kept]:
        """Load the network of a run directory or a weights file, in evaluation mode.

        Raises:
            RequestError: there are no such weights, or they hold no such network.
        """
        tensors, facts = weights.files.read(source)
        if self.kind not in facts:
            raise RequestError(
                f"weights is {source}, which holds no {self.kind}; expected a run of `{self.command}` or its weights: "
                f"train one first"
            )
        try:
            design = self._read_design(facts[self.kind])
            trunk = MultiScale(
                facts["architecture"],
                img_size=design.img_size,
                args=facts["arguments"],
                drop_path=0.0,
                depths=self.depths(design),
                window=design.window,
            )
            network = self.build(trunk, design)
            own: dict[str, Tensor] = {name: tensors[self._renamed(name)] for name in network.state_dict()}
            network.load_state_dict(own)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise RequestError(
                f"weights is {source}, whose {self.kind} does not fit its description ({first_line(error)[:200]}); "
                f"expected a file that `{self.command}` wrote"
            ) from None
        found = normalisation(facts)
        return Opened(network.eval(), trunk, design, found["mean"], found["std"], facts.get("range"))

    def _read_design(self, stored: Any) -> Kept:
        names = {field.name for field in fields(self.design)}  # type: ignore[arg-type]
        if not isinstance(stored, dict) or stored.keys() != names:
            raise ValueError("its metadata lacks something")
        design = self.design(**stored)
        check_numbers(design.img_size, 1 if design.window is None else design.window)
        if not design.classes or not all(isinstance(name, str) for name in design.classes):
            raise ValueError("its classes are no names")
        self.check(design)
        return design

    def _renamed(self, name: str) -> str:
        """The name of a tensor in the file: timm's own for the backbone's."""
        for prefix in self.backbone:
            if name.startswith(prefix):
                return name.removeprefix(prefix)
        return f"{self.kind}.{name}"


def check_numbers(*numbers: Any, least: int = 1) -> None:
    """Raise ValueError for what is no integer from `least` to 8192: a larger network would fill the memory."""
    if any(type(number) is not int or not least <= number <= _MOST for number in numbers):
        raise ValueError("a number is out of range")
