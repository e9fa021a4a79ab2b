"""torchvision datasets by name, as arrays or files where possible, so that workers hold no Python objects."""

from __future__ import annotations

import gzip
import inspect
import io
import math
import os
import socket
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastmim.data.pillow import only_images
from fastmim.data.pixels import to_array
from fastmim.data.sources.files import Files
from fastmim.data.sources.index import NameTable
from fastmim.data.sources.source import ByPosition, NoSuchSplit, Source
from fastmim.data.unreadable import BadImage, one_line
from fastmim.errors import RequestError, RunError
from fastmim.system.files import expanded, read_regular

OPTIONS = ("split", "root")

# An allow-list, so that a new dataset is not trusted unread. None of these unpickles a file of its folder: CIFAR's
# pickles must have the published checksum, and torch.load, numpy.load and loadmat read data only.
_SAFE = {
    "CIFAR10", "CIFAR100", "CLEVRClassification", "CREStereo", "Caltech101", "Caltech256", "CarlaStereo", "CelebA",
    "Cityscapes", "Country211", "DTD", "EMNIST", "ETH3DStereo", "EuroSAT", "FER2013", "FGVCAircraft",
    "FallingThingsStereo", "FashionMNIST", "Flowers102", "FlyingChairs", "FlyingThings3D", "Food101", "GTSRB", "HD1K",
    "INaturalist", "ImageFolder", "ImageNet", "Imagenette", "InStereo2k", "KMNIST", "Kitti", "Kitti2012Stereo",
    "Kitti2015Stereo", "KittiFlow", "LFWPairs", "LFWPeople", "MNIST", "Middlebury2014Stereo", "MovingMNIST", "Omniglot",
    "OxfordIIITPet", "PCAM", "Places365", "QMNIST", "RenderedSST2", "SBDataset", "SBU", "SEMEION", "STL10", "SUN397",
    "SVHN", "SceneFlowStereo", "Sintel", "SintelStereo", "StanfordCars", "USPS", "VOCDetection", "VOCSegmentation",
    "WIDERFace",
}  # fmt: skip
_UNPICKLING = {"LSUN", "LSUNClass"}
_MAX_PIXELS = 25_000_000
"""The largest image that torchvision opens itself: its datasets hold no larger ones."""

# Datasets published as MNIST's four IDX files, and their folders under Debian's /usr/share/datasets.
_IDX_SETS = {"MNIST": "mnist", "FashionMNIST": "fashion-mnist", "KMNIST": "kmnist"}
_DEBIAN = Path("/usr/share/datasets")
_MAX_IDX = 1 << 28  # bytes, decompressed
_TIMEOUT_S = 30.0


@dataclass(frozen=True, eq=False)
class Arrays(ByPosition):
    """Decoded images of one size, in memory."""

    images: np.ndarray
    """uint8 (N, H, W) or (N, H, W, 3)."""

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> np.ndarray:
        return self.images[index]


@dataclass(frozen=True, eq=False)
class Pictures(ByPosition):
    """A torchvision dataset that opens its own files."""

    dataset: Any

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, index: int) -> np.ndarray:
        try:
            with only_images(_MAX_PIXELS):
                return to_array(self.dataset[index][0], self.decoding)
        except BadImage:
            raise
        except Exception as error:  # Pillow's plugins meet damage with any exception
            raise BadImage(one_line(error)) from None


def open_torchvision(name: str, options: Mapping[str, str], *, origin: str, cache_dir: Path) -> Source:
    """Open a dataset from its files, or download it.

    Args:
        name: The dataset's class, such as "CIFAR10".
        options: "split", by default train or the dataset's own default, and "root", the folder of its files, by
            default `cache_dir`/torchvision and, for the MNIST family, the system's datasets.
        origin: The `--data` that the user wrote.
        cache_dir: For downloads.

    Raises:
        RequestError: The dataset is unknown, or its files are missing and not for download.
        RunError: Its files could not be downloaded.
        NoSuchSplit: The dataset has no such split.
    """
    from torchvision import datasets  # takes over a second, which other sources are spared

    dataset = _find(name, datasets)
    arguments = _split_argument(name, dataset, options.get("split"))
    root = expanded(options.get("root") or str(cache_dir / "torchvision"))
    if name in _IDX_SETS:
        found = _find_idx(name, root, train=arguments.get("train", True))
        if found:
            images, labels = (_read_idx(path) for path in found)
            if labels.shape != images.shape[:1] or images.ndim != 3:
                raise RequestError(f"{found[0]} and {found[1]} do not belong together; fetch both again")
            return Arrays(images, origin=origin, labels=labels.astype(np.int64), classes=list(dataset.classes))
    try:
        with only_images(_MAX_PIXELS):  # some look at their images
            return _as_source(_build(name, dataset, root, arguments), origin)
    except (RequestError, RunError):
        raise
    except Exception as error:  # damaged files, read by torchvision, Pillow, SciPy or h5py
        raise RequestError(f"{name} in {root} cannot be read ({one_line(error)}); fetch its files again") from None


def _find(name: str, datasets: Any) -> Any:
    """Find the dataset class of that name."""
    if name in _UNPICKLING:
        raise RequestError(
            f"torchvision's {name} unpickles files, which may run any code, and is not opened; "
            f"save its images to a folder, and give that"
        )
    usable = sorted(_SAFE & set(datasets.__all__))
    if name not in usable:
        near = {key.lower(): key for key in usable}
        nearest = [near[key] for key in get_close_matches(name.lower(), near, n=3, cutoff=0.5)]
        advice = f"the nearest are {', '.join(nearest)}" if nearest else "for example CIFAR10, FashionMNIST, STL10"
        raise RequestError(f"torchvision has no image dataset {name!r} that needs only a root; {advice}")
    return getattr(datasets, name)


def _split_argument(name: str, dataset: Any, split: str | None) -> dict[str, Any]:
    """Turn a split into the argument by which this dataset selects it."""
    parameters = inspect.signature(dataset).parameters
    if "train" in parameters:
        if split not in (None, "train", "test"):
            raise NoSuchSplit(f"{name} has no split {split!r}; expected train or test")
        return {"train": split != "test"}
    for argument in ("split", "image_set"):
        if argument in parameters:
            required = parameters[argument].default is inspect.Parameter.empty
            return {argument: split or "train"} if split or required else {}
    if split:
        raise NoSuchSplit(f"{name} has no splits; leave out split={split}")
    return {}


def _build(name: str, dataset: Any, root: Path, arguments: Mapping[str, Any]) -> Any:
    """Build the dataset from local files, or else download it."""
    from torchvision.datasets import MNIST

    can_download = "download" in inspect.signature(dataset).parameters or issubclass(dataset, MNIST)
    attempts: list[dict[str, bool]] = [{"download": False}, {"download": True}] if can_download else [{}]
    reason = ""
    for download in attempts:
        try:
            with _timeout(_TIMEOUT_S):
                return dataset(str(root), **arguments, **download)
        except (RuntimeError, OSError) as error:
            reason = one_line(error)
        except (ValueError, ImportError) as error:
            kind = NoSuchSplit if "for argument split" in str(error) else RequestError  # torchvision raises ValueError
            raise kind(f"torchvision://{name}: {one_line(error)}") from None
    tried = "could not be downloaded" if can_download else "cannot be downloaded by torchvision"
    said = f"{name} is not in {root} and {tried} ({reason}); {_remedy(name, dataset, root)}"
    raise RunError(said) if can_download else RequestError(said)


def _remedy(name: str, dataset: Any, root: Path) -> str:
    if name in _IDX_SETS:
        files = ", ".join(file for file, _ in dataset.resources)
        debian = ", or apt-get install dataset-fashion-mnist" if name == "FashionMNIST" else ""
        return f"fetch {files} from {dataset.mirrors[0]} and put them in {root / name / 'raw'}{debian}"
    url = getattr(dataset, "url", None)
    documentation = f"https://docs.pytorch.org/vision/stable/generated/torchvision.datasets.{name}.html"
    wanted = f"fetch {url}" if isinstance(url, str) else f"fetch its files ({documentation})"
    return f"{wanted} on a machine with a network, put it in {root}, or name its folder with ?root=..."


@contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    """Limit torchvision's downloads, which by default wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _as_source(dataset: Any, origin: str) -> Source:
    classes = getattr(dataset, "classes", None)
    classes = list(classes) if classes and all(isinstance(name, str) for name in classes) else None
    labels = _labels(dataset)
    if labels is None:
        classes = None
    samples = getattr(dataset, "samples", None)
    if samples and isinstance(samples[0], tuple) and Path(str(samples[0][0])).is_file():
        paths = NameTable.build([os.fsencode(Path(path).absolute()) for path, _ in samples])
        return Files(origin, "", paths, labels, classes)
    first = dataset[0][0]
    if not isinstance(first, Image.Image):
        raise RequestError(f"--data {origin}: the dataset gives {type(first).__name__}, not images")
    images = _image_array(getattr(dataset, "data", None), np.asarray(first), len(dataset))
    if images is None:
        return Pictures(dataset, origin=origin, labels=labels, classes=classes)
    return Arrays(images, origin=origin, labels=labels, classes=classes)


def _labels(dataset: Any) -> np.ndarray | None:
    for attribute in ("targets", "labels", "_labels"):
        values = getattr(dataset, attribute, None)
        if values is not None and len(values) == len(dataset):
            labels = np.asarray(values)
            if labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer) and labels.min() >= 0:
                return labels.astype(np.int64)
    return None


def _image_array(data: Any, first: np.ndarray, num_images: int) -> np.ndarray | None:
    """The dataset's pixels as (N, H, W) or (N, H, W, C), if it holds them in one array.

    Some store channels before rows, or swap rows and columns; the right order is the one that reproduces the
    first image as the dataset itself returns it.
    """
    images = np.asarray(data) if hasattr(data, "shape") else None
    if images is None or images.dtype != np.uint8 or len(images) != num_images:
        return None
    for axes in ((0, 1, 2), (0, 1, 2, 3), (0, 2, 3, 1), (0, 3, 2, 1)):
        if images.ndim == len(axes) and np.array_equal(images.transpose(axes)[0], first):
            return images.transpose(axes)
    return None


def _find_idx(name: str, root: Path, *, train: bool) -> tuple[Path, Path] | None:
    """Find the file of images and the file of labels."""
    part = "train" if train else "t10k"
    for folder in (root, root / name / "raw", root / name, root / "raw", _DEBIAN / _IDX_SETS[name]):
        for dot in "-.":  # both spellings are in circulation
            stems = (folder / f"{part}-images{dot}idx3-ubyte", folder / f"{part}-labels{dot}idx1-ubyte")
            files = [next((p for p in (stem, Path(f"{stem}.gz")) if p.is_file()), None) for stem in stems]
            if files[0] and files[1]:
                return files[0], files[1]
    return None


def _read_idx(path: Path) -> np.ndarray:
    """Read an IDX file of unsigned bytes, gzipped or not, as LeCun's MNIST page describes it.

    Two zeros, the type (8 = uint8), the number of axes, the length of each as a big-endian 32-bit number, the data.
    """
    try:
        data = read_regular(path)
        if data[:2] == b"\x1f\x8b":
            with gzip.open(io.BytesIO(data)) as file:
                data = file.read(_MAX_IDX + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise RequestError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > _MAX_IDX:
        raise RequestError(f"{path} holds more than {_MAX_IDX >> 20} MiB; expected MNIST's 45 or so")
    num_axes = data[3] if data[:3] == b"\0\0\x08" and len(data) > 3 else 0
    start = 4 + 4 * num_axes
    shape = [int.from_bytes(data[at : at + 4]) for at in range(4, start, 4)]
    if not num_axes or len(data) - start != math.prod(shape):
        raise RequestError(f"{path} is not a complete IDX file of bytes; fetch it again")
    return np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape)
