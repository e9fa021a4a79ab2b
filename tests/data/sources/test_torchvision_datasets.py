"""torchvision:// on local files of every kind, and the messages for missing ones."""

from __future__ import annotations

import gzip
import pickle
import struct
import tracemalloc
import urllib.request
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image
from torchvision import datasets

from fastmim.data.sources import open_source, torchvision_datasets
from fastmim.data.sources.source import NoSuchSplit
from fastmim.data.unreadable import BadImage
from fastmim.errors import RequestError, RunError
from pictures import encode, photograph

IMAGES = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)
LABELS = np.array([3, 1, 4, 1, 5], dtype=np.uint8)


def idx(values: np.ndarray) -> bytes:
    """Encode in the format of yann.lecun.com/exdb/mnist: magic number, axes, bytes."""
    return struct.pack(f">{1 + values.ndim}I", 0x0800 + values.ndim, *values.shape) + values.tobytes()


def write_idx(folder: Path, *, part: str = "train", zipped: bool = False, dot: str = "-") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in ((f"{part}-images{dot}idx3-ubyte", IMAGES), (f"{part}-labels{dot}idx1-ubyte", LABELS)):
        path = folder / (name + ".gz" * zipped)
        path.write_bytes(gzip.compress(idx(values)) if zipped else idx(values))


@pytest.fixture(autouse=True)
def nothing_around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Turn off the network, and hide this machine's own datasets."""

    def refuse(*args: object, **options: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(torchvision_datasets, "_DEBIAN", tmp_path / "debian")


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("place", ["{root}", "{root}/FashionMNIST/raw", "{root}/raw", "{tmp}/debian/fashion-mnist"])
def test_idx_files_are_found_in_all_usual_folders(tmp_path: Path, place: str, zipped: bool) -> None:
    root = tmp_path / "root"
    write_idx(Path(place.format(root=root, tmp=tmp_path)), zipped=zipped)
    source = open_source(f"torchvision://FashionMNIST?root={root}")
    assert len(source) == 5
    assert np.array_equal(source.read(2), IMAGES[2])
    assert source.labels is not None and source.labels.dtype == np.int64
    assert source.labels.tolist() == LABELS.tolist()
    assert source.classes is not None and source.classes[3] == "Dress"
    assert source.name(2) == f"torchvision://FashionMNIST?root={root}#2"
    assert np.array_equal(pickle.loads(pickle.dumps(source)).read(4), IMAGES[4])  # noqa: S301 - our own


def test_both_spellings_both_splits_and_the_cache_directory(tmp_path: Path) -> None:
    write_idx(tmp_path / "torchvision" / "KMNIST", part="t10k", dot=".")
    assert len(open_source("torchvision://KMNIST?split=test", cache_dir=tmp_path)) == 5
    with pytest.raises(RunError, match="KMNIST is not in"):
        open_source("torchvision://KMNIST?split=train", cache_dir=tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"\0\0\x08", idx(IMAGES)[:30], idx(IMAGES) + b"\0", b"\0\0\x0d" + idx(IMAGES)[3:], b"<html>"]
)
def test_a_broken_idx_file_is_named(tmp_path: Path, content: bytes) -> None:
    write_idx(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(
        RequestError, match=r"train-images-idx3-ubyte is not a complete IDX file of bytes; fetch it again"
    ):
        open_source(f"torchvision://MNIST?root={tmp_path}")


def test_a_truncated_gzip_file_is_named(tmp_path: Path) -> None:
    write_idx(tmp_path, zipped=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(RequestError, match=r"cannot read .*train-images-idx3-ubyte.gz: "):
        open_source(f"torchvision://MNIST?root={tmp_path}")


def test_labels_of_another_set_are_refused(tmp_path: Path) -> None:
    write_idx(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(LABELS[:4]))
    with pytest.raises(RequestError, match="do not belong together"):
        open_source(f"torchvision://MNIST?root={tmp_path}")


def test_a_dataset_of_files_becomes_a_list_of_files(tmp_path: Path) -> None:
    for name in ("cat/1.png", "dog/2.png", "dog/3.png"):
        (tmp_path / "eurosat/2750" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "eurosat/2750" / name).write_bytes(encode(photograph().resize((6, 4)), "PNG"))
    source = open_source(f"torchvision://EuroSAT?root={tmp_path}")
    assert source.name(2) == str(tmp_path / "eurosat/2750/dog/3.png")
    assert source.read(2) == Path(source.name(2)).read_bytes()
    assert source.classes == ["cat", "dog"]
    assert source.labels is not None and source.labels.tolist() == [0, 1, 1]


class Stored:
    """A dataset that stores its pixels in the given layout, and returns Pillow images."""

    layout: Any = staticmethod(lambda images: images)
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    classes = ("a", "b")

    def __init__(self, root: str, split: str = "train", download: bool = False) -> None:
        self.data = self.layout(self.images)
        self.targets = [0, 1, 1, 0, 1]

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return Image.fromarray(self.images[index]), self.targets[index]


def register(monkeypatch: pytest.MonkeyPatch, dataset: type) -> str:
    monkeypatch.setattr(datasets, "Fake", dataset, raising=False)
    monkeypatch.setattr(datasets, "__all__", (*datasets.__all__, "Fake"))
    monkeypatch.setattr(torchvision_datasets, "_SAFE", {"Fake"})
    return "torchvision://Fake"


@pytest.mark.parametrize(
    "layout",
    [
        lambda images: images,  # CIFAR10
        lambda images: images.transpose(0, 3, 1, 2),  # SVHN
        lambda images: images.transpose(0, 3, 2, 1),
        lambda images: torch.from_numpy(images),
        lambda images: images.astype(np.float32),  # not uint8: the dataset decodes each image itself
        lambda images: None,
    ],
)
def test_pixels_in_memory_are_used_in_any_layout(layout: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data = register(monkeypatch, type("Fake", (Stored,), {"layout": staticmethod(layout)}))
    source = open_source(data)
    assert all(np.array_equal(source.read(index), Stored.images[index]) for index in range(5))
    assert source.labels is not None and source.labels.tolist() == [0, 1, 1, 0, 1]
    assert source.classes == ["a", "b"] and source.name(1) == "torchvision://Fake#1"


def test_an_image_that_its_dataset_cannot_open_is_a_bad_image(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Stored):
        layout = staticmethod(lambda images: None)

        def __getitem__(self, index: int) -> tuple[Any, int]:
            if index:
                raise SyntaxError("broken PNG file")
            return super().__getitem__(index)

    source = open_source(register(monkeypatch, Broken))
    assert len(source) == 5
    with pytest.raises(BadImage, match="broken PNG file"):
        source.read(1)


def test_no_dataset_reaches_ghostscript(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Not even with its first image, which is looked at when the dataset is opened."""
    (tmp_path / "1.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n")
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args: pytest.fail("Ghostscript"))

    class Plain(Stored):
        def __getitem__(self, index: int) -> tuple[Any, int]:
            return Image.open(tmp_path / "1.jpg").convert("RGB"), 0

    with pytest.raises(RequestError, match="Fake in .* cannot be read .*cannot identify image file.*; fetch its files"):
        open_source(register(monkeypatch, Plain), cache_dir=tmp_path)


def test_a_gzip_bomb_is_no_idx_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision_datasets, "_MAX_IDX", 2 << 20)
    write_idx(tmp_path, zipped=True)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(50 << 20)))
    tracemalloc.start()
    try:
        with pytest.raises(RequestError, match=r"train-images-idx3-ubyte.gz holds more than 2 MiB; expected MNIST's"):
            open_source(f"torchvision://MNIST?root={tmp_path}")
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()


def test_targets_that_are_not_classes_are_not_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unlabelled(Stored):
        def __init__(self, root: str) -> None:
            super().__init__(root)
            self.targets = [-1] * 5

    source = open_source(register(monkeypatch, Unlabelled))
    assert source.labels is None and source.classes is None


def test_a_dataset_without_images_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Sound(Stored):
        def __getitem__(self, index: int) -> tuple[Any, int]:
            return torch.zeros(2), 0

    with pytest.raises(RequestError, match="the dataset gives Tensor, not images"):
        open_source(register(monkeypatch, Sound))


def test_the_datasets_default_split_is_used_unless_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    class Splits(Stored):
        def __init__(self, root: str, image_set: str = "trainval") -> None:
            opened.append(image_set)
            super().__init__(root)

    data = register(monkeypatch, Splits)
    open_source(data)
    open_source(data + "?split=val")
    assert opened == ["trainval", "val"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("torchvision://Cifar", r"no image dataset 'Cifar' that needs only a root; the nearest are CIFAR10, CIFAR100"),
        ("torchvision://zzz", r"no image dataset 'zzz' .*; for example CIFAR10"),
        ("torchvision://VisionDataset", "no image dataset 'VisionDataset'"),
        ("torchvision://CocoDetection", "no image dataset 'CocoDetection'"),
        (
            "torchvision://LSUN",
            "torchvision's LSUN unpickles files, which may run any code, and is not opened; save its",
        ),
        ("torchvision://LSUNClass?root=.", "torchvision's LSUNClass unpickles files"),
        ("torchvision://CIFAR10?split=val", "CIFAR10 has no split 'val'; expected train or test"),
        ("torchvision://Caltech101?split=test", "Caltech101 has no splits; leave out split=test"),
        ("torchvision://STL10?split=val", r"torchvision://STL10: Unknown value 'val' for argument split. Valid"),
        ("torchvision://EMNIST", r"torchvision://EMNIST: Unknown value 'train' for argument split. Valid"),
        ("torchvision://CIFAR10?color=1", r"'color' is not an option; expected split=... or root=..."),
    ],
)
def test_wrong_requests(data: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=message):
        open_source(data, cache_dir=tmp_path)


@pytest.mark.parametrize("named", ["CIFAR10?split=val", "Caltech101?split=test", "STL10?split=val"])
def test_a_missing_split_has_an_error_of_its_own(named: str, tmp_path: Path) -> None:
    with pytest.raises(NoSuchSplit):
        open_source(f"torchvision://{named}", cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("CIFAR10", r"CIFAR10 is not in {root} and could not be downloaded \(.*no network.*\); fetch "
                    r"https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz .* put it in {root}"),
        ("FashionMNIST", r"could not be downloaded \(.*no network.*\); fetch train-images-idx3-ubyte.gz, .* and put "
                         r"them in {root}/FashionMNIST/raw, or apt-get install dataset-fashion-mnist"),
        ("SVHN", r"fetch its files \(https://docs.pytorch.org/.*SVHN.html\)"),
        ("ImageNet", r"ImageNet is not in {root} and cannot be downloaded by torchvision \(The archive ILSVRC2012"),
    ],
)  # fmt: skip
def test_without_files_and_network_the_message_says_what_to_fetch(name: str, message: str, tmp_path: Path) -> None:
    kind = RequestError if name == "ImageNet" else RunError  # a download that fails is no wrong request
    with pytest.raises(kind, match=message.format(root=tmp_path / "torchvision")) as caught:
        open_source(f"torchvision://{name}", cache_dir=tmp_path)
    assert "\n" not in str(caught.value)


def test_the_fashion_mnist_that_debian_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    if not torchvision_datasets._DEBIAN.joinpath("fashion-mnist").is_dir():
        pytest.skip("the package dataset-fashion-mnist is not installed")
    train, test = (
        open_source(f"torchvision://FashionMNIST?split={split}&root=/nowhere") for split in ("train", "test")
    )
    assert (len(train), len(test)) == (60_000, 10_000)
    assert test.labels is not None and np.bincount(test.labels).tolist() == [1000] * 10
