"""Images from Python: datasets, and lists of pictures, arrays, tensors and paths, as `data`."""

from __future__ import annotations

import copy
import pickle
import shutil
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fastmim
from conftest import SMALL, UNTRAINED
from fastmim import cli
from fastmim.data.loader import load
from fastmim.data.settings import ImageConfig
from fastmim.data.sources import open_source
from fastmim.data.sources.objects import Given
from fastmim.data.sources.sampling import decoded_as
from fastmim.errors import RequestError
from tuning import NETWORK, TINY, equal, tensors

NUM = 24
FEW = SMALL | {"steps": 4, "save_every": 2}
ARRAYS = list(np.random.default_rng(0).integers(0, 256, (NUM, 40, 48, 3), dtype=np.uint8))


class Photos(torch.utils.data.Dataset):
    """Pictures and the names of their classes, dark and light."""

    def __init__(self, arrays: list[np.ndarray] = ARRAYS) -> None:
        self.arrays = arrays

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, index: int) -> tuple[Image.Image, str]:
        return Image.fromarray(self.arrays[index] // 4 * (1 + 2 * (index % 2))), ("dark", "light")[index % 2]


class Numbered(Photos):
    """With labels as torchvision's datasets have them."""

    targets = torch.arange(NUM) % 2
    classes = ("even", "odd")


def read(images: Any) -> list[np.ndarray]:
    source = open_source(Given(images, name="data"))
    return [source.read(index) for index in range(len(source))]  # type: ignore[misc]


def files(folder: Path) -> list[Path]:
    for number, array in enumerate(ARRAYS):
        Image.fromarray(array).save(folder / f"{number:02d}.png")
    return sorted(folder.glob("*.png"))


def test_every_kind_of_item_gives_its_pixels() -> None:
    kinds = {
        "pictures": [Image.fromarray(array) for array in ARRAYS],
        "one array": np.stack(ARRAYS),
        "tensors": torch.from_numpy(np.stack(ARRAYS)).movedim(3, 1),
        "tensors from 0 to 1": [torch.from_numpy(array).movedim(2, 0) / 255 for array in ARRAYS],
        "tuples": [(array, 3) for array in ARRAYS],
        "dicts": [{"image": array} for array in ARRAYS],
    }
    for kind, images in kinds.items():
        assert all(map(np.array_equal, read(images), ARRAYS)), kind
    assert read([ARRAYS[0][..., 0]])[0].shape == (40, 48)
    assert len(np.unique(read([Image.fromarray(ARRAYS[0][..., 0].astype(np.uint16) * 200)])[0])) > 200


def test_training_on_a_dataset_is_training_on_its_images(tmp_path: Path) -> None:
    first = fastmim.pretrain(data=ARRAYS, out=tmp_path / "arrays", **FEW)
    assert "data: python://list[24]\n" in (first.out / "config.yaml").read_text()
    (tmp_path / "files").mkdir()
    paths: list[Any] = files(tmp_path / "files")
    second = fastmim.pretrain(data=paths, out=tmp_path / "paths", **FEW | {"num_workers": 2})
    assert equal(tensors(first.out), tensors(second.out))


def test_a_run_on_a_dataset_resumes_to_the_bit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = fastmim.pretrain(data=Photos(), out=tmp_path / "whole", **FEW)
    broken = tmp_path / "broken"
    shutil.copytree(whole.out, broken)
    shutil.rmtree(max((broken / "checkpoints").iterdir()))
    for name in ("data", "probe"):
        with pytest.raises(RequestError, match=r"python://Photos\[24\] stands for images that a Python program had in"):
            fastmim.pretrain(out=broken, **FEW, **({} if name == "data" else {"probe": "python://Photos[24]"}))
    fewer = r"data is python://Photos\[23\] with 23 images; expected the 24 that the run in .* began with"
    with pytest.raises(RequestError, match=fewer):
        fastmim.pretrain(data=Photos(ARRAYS[1:]), out=broken, **FEW)
    assert fastmim.pretrain(data=Photos(), out=broken, **FEW | {"num_workers": 1}).finished
    assert equal(tensors(whole.out), tensors(broken))
    capsys.readouterr()
    with pytest.raises(SystemExit) as done:
        cli.main(["pretrain", "--config", str(broken / "config.yaml")])
    said = capsys.readouterr().err
    assert done.value.code == 2 and said.count("\n") == 1 and "expected the same call from Python" in said


def test_labelled_datasets(tmp_path: Path) -> None:
    probed = fastmim.probe(data=Photos(), val_data=Photos(ARRAYS[:8]), out=tmp_path / "a.json", **UNTRAINED)
    assert probed.report["classes"] == ["dark", "light"] and probed.report["num_val"] == 8
    numbered: Any = Numbered()
    assert fastmim.probe(data=numbered, out=tmp_path / "b.json", **UNTRAINED).report["classes"] == ["even", "odd"]
    pairs: Any = [(array, number % 2) for number, array in enumerate(ARRAYS)]
    tuned = fastmim.finetune(data=pairs, out=tmp_path / "tuned", **TINY | NETWORK | {"steps": 1})
    assert tuned.finished and "data: python://list[24]\n" in (tuned.out / "config.yaml").read_text()
    fastmim.embed(data=numbered, out=tmp_path / "features.npy", **UNTRAINED)
    rows = (tmp_path / "features.csv").read_text().splitlines()
    assert rows[1:3] == ["python://Numbered[24]#0,even", "python://Numbered[24]#1,odd"]
    predicted = fastmim.predict(weights=tuned.weights, data=ARRAYS, out=tmp_path / "p.csv", device="cpu", num_workers=0)
    assert predicted.num_rows == NUM
    fastmim.pack(numbered, tmp_path / "packed", codec="raw", num_workers=0)
    packed = open_source(str(tmp_path / "packed"))
    assert packed.classes == ["even", "odd"] and np.array_equal(packed.read(5), Numbered()[5][0])


def test_hugging_face_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    columns = {"picture": [Image.fromarray(array) for array in ARRAYS], "label": [n % 2 for n in range(NUM)]}
    dataset = datasets.Dataset.from_dict(columns).cast_column("picture", datasets.Image())
    first = fastmim.pretrain(data=dataset, out=tmp_path / "rows", **FEW)
    assert equal(tensors(first.out), tensors(fastmim.pretrain(data=ARRAYS, out=tmp_path / "arrays", **FEW).out))
    assert fastmim.probe(data=dataset.shuffle(seed=0), out=tmp_path / "a.json", **UNTRAINED).report["num_train"] == 22
    with pytest.raises(RequestError, match=r"has a transform, .*; expected none: dataset.with_format\(None\)"):
        fastmim.pretrain(data=dataset.with_transform(lambda rows: rows), out=tmp_path / "a", **FEW)
    two = dataset.add_column("second", [0] * NUM).rename_column("label", "a")
    with pytest.raises(RequestError, match="no image column among a .*, second .*with dataset.select_columns"):
        fastmim.pretrain(data=two.remove_columns("picture"), out=tmp_path / "a", **FEW)
    with pytest.raises(RequestError, match="data is a DatasetDict, of train, test, without items by number"):
        fastmim.pretrain(data=datasets.DatasetDict(train=dataset, test=dataset), out=tmp_path / "a", **FEW)


def test_workers_that_are_started_afresh_are_sent_the_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(Given(Photos(), name="data"))
    assert np.array_equal(pickle.loads(pickle.dumps(source)).read(3), source.read(3))  # noqa: S301

    class Local(Photos):
        pass

    def start(images: Any) -> None:
        settings: dict[str, Any] = {"size": 32, "seed": 0, "global_batch": 8, "first_step": 0, "last_step": 1}
        next(load(open_source(Given(images, name="data")), **settings, num_workers=1, start_method="spawn"))

    with pytest.raises(
        RequestError, match=r"data is python://Local\[24\], which cannot be sent to data workers .*Local'.*"
    ):
        start(Local())
    monkeypatch.setattr(Photos, "__module__", "__main__")
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)  # of a worker of pytest
    with pytest.raises(RequestError, match="Photos is defined in a notebook, or at a prompt.*or give num_workers=0"):
        start(Photos())


class Broken(Photos):
    def __getitem__(self, index: int) -> Any:
        raise KeyError("picture")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], r"python://list\[0\] has no images; expected at least one"),
        (iter(ARRAYS), "data is a list_iterator, without items by number; expected a map-style dataset"),
        ({"train": ARRAYS}, "data is a dict, of train, without items by number"),
        ([1, 2], r"python://list\[2\]: item 0 is no image \(int\); expected a PIL image, an array of uint8"),
        ([torch.zeros(3, 8, 8) - 1], r"item 0 is no image \(Tensor of torch.float32 \(3, 8, 8\) from -1 to -1\)"),
        ([ARRAYS[0].transpose(2, 0, 1)], r"item 0 is no image \(ndarray of uint8 \(3, 40, 48\)\)"),
        (["there/is/none.png"], "begins with 'there/is/none.png'; expected a list of image files"),
        (Broken(), r"item 0 is no image \(KeyError: 'picture'\)"),
    ],
)
def test_what_is_no_dataset_of_images(images: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=message):
        fastmim.pretrain(data=images, out=tmp_path / "run", **FEW)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (ARRAYS, "item 0 has no label; expected items .image, label."),
        (
            [(array, -1) for array in ARRAYS],
            "has labels such as -1; expected a number from 0 on, or the name of a class",
        ),
        (Broken(), "item 0 is no image"),
    ],
)
def test_what_is_no_labelled_dataset(images: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=message):
        fastmim.probe(data=images, out=tmp_path / "a.json", **UNTRAINED)


def test_damaged_images_of_a_dataset_are_skipped(tmp_path: Path) -> None:
    class Damaged(Photos):
        def __getitem__(self, index: int) -> Any:
            if index == 0:
                raise OSError("truncated")
            return ARRAYS[index]

    fastmim.pretrain(data=Damaged(), out=tmp_path, max_bad_share=0.1, **FEW)
    assert "python://Damaged[24]#0\t" in (tmp_path / "bad_images.txt").read_text()


class Billion:
    """Images made from their number."""

    def __len__(self) -> int:
        return 10**9

    def __getitem__(self, index: int) -> np.ndarray:
        return np.full((8, 8, 3), index % 256, dtype=np.uint8)


def test_a_billion_images_by_number_need_no_list() -> None:
    tracemalloc.start()
    source = decoded_as(open_source(Given(Billion(), name="data")), ImageConfig())
    batch = next(load(source, size=8, seed=0, global_batch=4, first_step=0, last_step=1))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(source) == 10**9 and batch["images"].shape == (4, 3, 8, 8) and most < 20e6


def test_settings_hold_text() -> None:
    given = Given(ARRAYS, name="data")
    assert type(copy.deepcopy(given)) is str and copy.deepcopy(given) == "python://list[24]"
    with pytest.raises(RequestError, match="data is .*; expected str"):
        fastmim.segment(data=ARRAYS)
