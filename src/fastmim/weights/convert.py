"""Conversion of other projects' checkpoints to weights files: every tensor is checked, and no pickled code runs."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastmim.backbone import Backbone, resolve
from fastmim.backbone.architecture import Architecture
from fastmim.errors import RequestError, RunError, first_line, listed
from fastmim.system import locking
from fastmim.system.files import exists
from fastmim.weights import decoders, files, foreign, foreign_file
from fastmim.weights.foreign import State

_MOST_CLASSES = 1 << 16  # as in any weights file
_CLASSIFIERS = ("head.", "fc.", "classifier.")


@dataclass(frozen=True)
class Conversion:
    """The result of a conversion."""

    path: Path
    method: str
    """The project whose layout the checkpoint has: FastMIM, MAE, SimMIM or timm."""
    backbone: str
    arguments: dict[str, Any]
    """Arguments of the timm model beyond its name."""
    img_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_parameters: int
    num_classes: int
    """Classes of the classifier, if it was kept; else 0."""
    dropped: tuple[str, ...]
    """Names of the tensors outside the backbone that are in neither file: classifier, computed buffers."""
    kept: tuple[str, ...]
    """Names of the tensors of decoder and mask token, in the file `decoders.path_beside(path)`."""
    decoder: str
    """Flags with which `pretrain` makes the decoder that was kept, or empty."""
    fresh: tuple[str, ...]
    """Names of tensors that only the project's pre-training or only its fine-tuning has: they start untrained."""
    left: tuple[str, ...]
    """Names of the file's other contents, such as an optimiser."""
    note: str
    """A note for the user, or empty."""

    def describe(self) -> str:
        """A summary of several lines."""
        arguments = "".join(f", {key} {value}" for key, value in self.arguments.items())
        flags = "".join(f" --backbone-args.{key} {value}" for key, value in self.arguments.items())
        lines = [
            f"checkpoint {self.method}'s layout: {self.num_parameters / 1e6:.1f} M parameters of the backbone",
            f"backbone   {self.backbone}{arguments}, trained at {self.img_size} px; "
            f"images with mean {_numbers(self.mean)}, deviation {_numbers(self.std)}",
        ]
        if self.note:
            lines.append(f"note       {self.note}")
        if self.dropped:
            lines.append(f"dropped    {len(self.dropped)} tensors outside the backbone: {_groups(self.dropped)}")
        if self.fresh:
            lines.append(f"untrained  {_groups(self.fresh)}: the project's network has them in its other phase only")
        if self.left:
            lines.append(f"left out   {', '.join(self.left)}")
        lines.append(f"wrote      {self.path}; read back, equal to the bit")
        if self.kept:
            lines.append(f"beside it  {decoders.path_beside(self.path)}: {_groups(self.kept)}, to go on pre-training")
        if self.num_classes:
            lines.append(f"classifier kept, {self.num_classes} classes")
        lines.append(
            f"continue   fastmim pretrain --init {shlex.quote(str(self.path))} --backbone {self.backbone}{flags}"
            f"{self.decoder and f' --img-size {self.img_size} {self.decoder}'}"
        )
        return "\n".join(lines)


def convert(
    file: str | Path,
    *,
    out: str | Path,
    backbone: str | None = None,
    backbone_args: Mapping[str, Any] | None = None,
    keep_head: bool = False,
    overwrite: bool = False,
) -> Conversion:
    """Write another project's checkpoint as a fastmim weights file, at the image size that it was trained at.

    The decoder and the mask token of pre-training go into a second file, from which `pretrain --init` takes them.
    Supported are the pre-trained and fine-tuned checkpoints of FastMIM (ViT, Swin, PVTv2, CMT-S), MAE (ViT; with or
    without decoder) and SimMIM (Swin, ViT), the original Swin and PVTv2, and any timm state dict, as a PyTorch pickle
    or safetensors. Only tensors, plain Python values, `argparse.Namespace` and yacs' configs are loaded from a pickle.

    Args:
        file: The checkpoint.
        out: The .safetensors file to write; the second one of `a.safetensors` is `a.pretraining.safetensors`.
        backbone: timm's name of the architecture; inferred from the tensors if None.
        backbone_args: Further arguments of the timm model.
        keep_head: Keep the classifier of a fine-tuned checkpoint, with its classes' numbers as their names.
        overwrite: Replace `out`.

    Raises:
        RequestError: the file is missing, damaged or of other objects; tensors are unknown, missing or of other shapes
            (the message names them); there is no classifier to keep; `out` exists or cannot be written.
        RunError: it does not read back the same.

    Example:
        >>> converted = fastmim.convert("mae_pretrain_vit.pth", out="backbone.safetensors")
    """
    file, out = Path(file), _checked(Path(out), overwrite=overwrite)
    state, left = foreign_file.read(file)
    tensors, dropped = foreign.split(state, layout := foreign.recognise(state))
    found = _identify(file, tensors, state, layout, name=backbone and resolve(backbone), arguments=backbone_args or {})
    encoder = _encoder(found)
    network, head = _network(file, found, encoder, tensors, keep_head=keep_head)
    tensors = {name: tensor for name, tensor in tensors.items() if keep_head or name not in head}
    _load(file, found, tensors, network, fresh := _absent(layout, tensors, network.state_dict()))
    kept = decoders.renamed(state, layout, stride=encoder.stride)
    about = {"converted_from": file.name, "method": layout.method}
    _write(out, network, lambda path: _save(path, found, encoder, network, about), kept)
    return Conversion(
        path=out,
        method=layout.method,
        backbone=found.name,
        arguments=found.arguments,
        img_size=found.img_size,
        mean=found.mean,
        std=found.std,
        num_parameters=sum(parameter.numel() for parameter in encoder.parameters()),
        num_classes=len(tensors[_last_layer(network)]) if keep_head else 0,
        dropped=(*(name for name in dropped if name not in kept.names), *(() if keep_head else head)),
        kept=kept.names,
        decoder=decoders.flags(kept),
        fresh=fresh,
        left=tuple(left),
        note=found.note or decoders.note(state, layout),
    )


def _checked(out: Path, *, overwrite: bool) -> Path:
    if out.suffix != ".safetensors":
        raise RequestError(f"out is {out}; expected a file ending in .safetensors")
    for path in (out, decoders.path_beside(out)):
        if exists(path) and not overwrite:
            what = "which exists" if path == out else f"beside which {path.name} exists"
            raise RequestError(f"out is {out}, {what}; expected a path that is free: take another, or --overwrite")
    return out


def _encoder(found: foreign.TimmModel) -> Backbone:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # for tensors that are not in the file
        return Backbone(found.name, img_size=found.img_size, args=found.arguments)


def _network(
    file: Path, found: foreign.TimmModel, encoder: Backbone, tensors: State, *, keep_head: bool
) -> tuple[nn.Module, list[str]]:
    """The timm model to fill, with a classifier if it is kept, and the names of the classifier's tensors."""
    own = encoder.model.state_dict()
    head = [name for name in tensors if name.startswith(_CLASSIFIERS) and name not in own]
    if not keep_head:
        return encoder.model, head
    architecture = Architecture(found.name, found.arguments)
    last = _last_layer(architecture.whole)
    num_classes = len(tensors[last]) if last in head and tensors[last].ndim else 0
    if not 0 < num_classes <= _MOST_CLASSES:
        raise RequestError(
            f"keep_head is on, and {file} has no {last} of {found.name} for 1 to {_MOST_CLASSES} classes, but "
            f"{listed(head) or 'no classifier'}; expected a fine-tuned checkpoint: drop --keep-head"
        )
    return architecture.create(found.img_size, num_classes=num_classes), head


def _last_layer(model: Any) -> str:
    """The name of the weight (classes, ...) of a timm model's classifier."""
    classifier = model.pretrained_cfg["classifier"]
    return f"{classifier if isinstance(classifier, str) else classifier[0]}.weight"


def _save(path: Path, found: foreign.TimmModel, encoder: Backbone, network: nn.Module, about: dict[str, Any]) -> None:
    """Write the encoder, or the whole network if that is another."""
    about = about | {"mean": found.mean, "std": found.std}
    if network is encoder.model:
        files.save(path, encoder, about=about, as_is=found.img_size != found.native_size)
        return
    arguments = Architecture(found.name, found.arguments).arguments(network)
    facts = {
        "architecture": found.name,
        "arguments": arguments,
        "img_size": found.img_size,
        "num_blocks": encoder.num_blocks,
        "trained_blocks": encoder.num_blocks,
        "untrained": [],
        "classes": [str(number) for number in range(arguments["num_classes"])],
    }
    files.write(path, network.state_dict(), facts | about)


def _identify(file: Path, backbone: State, state: State, layout: foreign.Layout, **given: Any) -> foreign.TimmModel:
    try:
        return foreign.identify(backbone, state, layout, **given)
    except KeyError as error:  # the tensor that says the size of something
        raise RequestError(
            f"file is {file}, whose missing keys include {error.args[0]}; expected all tensors of a backbone: download "
            f"it again"
        ) from None
    except (TypeError, IndexError, ZeroDivisionError) as error:  # such as the width of a tensor without dimensions
        raise RequestError(
            f"file is {file}, whose tensors have shapes of no known model ({first_line(error)}); download it again"
        ) from None


def _absent(layout: foreign.Layout, tensors: State, expected: State) -> tuple[str, ...]:
    """The tensors of optional layers of which the checkpoint has none."""
    optional = layout.naming.optional if layout.naming else ()
    absent = [prefix for prefix in optional if not any(name.startswith(prefix) for name in tensors)]
    return tuple(name for name in expected if name.startswith(tuple(absent)))


def _load(file: Path, found: foreign.TimmModel, tensors: State, network: nn.Module, fresh: Sequence[str]) -> None:
    """Load a checkpoint's tensors, or refuse it if they are not exactly the model's, except for the fresh ones."""
    expected = {name: tensor for name, tensor in network.state_dict().items() if name not in fresh}
    wrong = files.differences(tensors, expected)
    if wrong:
        arguments = f" with {found.arguments}" if found.arguments else ""
        raise RequestError(
            f"file is {file}, which is not {found.name}{arguments}: {wrong}; "
            f"expected that model's tensors and no others: give the right --backbone and --backbone-args"
        )
    network.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}, strict=False)


def _write(out: Path, network: nn.Module, write: Callable[[Path], None], kept: decoders.Found) -> None:
    """Write the file, read it back, compare, and only then rename it into place; the decoder goes beside it."""
    try:
        with locking.staging(out, print) as folder:
            partial = folder / out.name
            write(partial)
            tensors, facts = files.read(partial)
            written = files.build(partial, tensors, facts, classifier="classes" in facts).state_dict()
            differing = [k for k, v in network.state_dict().items() if not torch.equal(v, written[k])]
            if differing:
                raise RunError(f"{listed(differing)} did not read back the same from {out}; report the checkpoint")
            beside = decoders.path_beside(out)
            if kept.tensors:
                decoders.write(beside, kept, tensors)
            else:
                beside.unlink(missing_ok=True)  # that of the weights that are replaced
            partial.replace(out)
    except OSError as error:
        raise RequestError(f"out is {out}: {error.strerror or error}; expected a file that can be written") from None


def _groups(names: Sequence[str]) -> str:
    """Names grouped by their first part, as in "decoder_blocks.* (12)"."""
    counts = Counter(re.sub(r"\..*", ".*", name) for name in names)
    return ", ".join(name if count == 1 else f"{name} ({count})" for name, count in counts.items())


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)
