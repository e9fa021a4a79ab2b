"""Images with label images: finding both, reading numbers, crops, and what is refused."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastmim import RequestError, RunError
from fastmim.data.colour_jitter import jitter_colours
from fastmim.data.label_crops import decode_resized, load_crops, load_whole, random_crop, resize_labels
from fastmim.data.label_images import IGNORED, Scenes, open_scenes
from fastmim.data.unreadable import BadImage
from scenes import CLASSES, draw_scenes


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return draw_scenes(tmp_path / "data")


def folders(root: Path) -> dict[str, str]:
    names = {"data": "images/training", "labels": "annotations/training"}
    names |= {"val_data": "images/validation", "val_labels": "annotations/validation"}
    return {key: str(root / name) for key, name in names.items()}


def test_ade20k_layout_ignores_0_and_begins_at_1(root: Path) -> None:
    found = open_scenes(str(root), None)
    assert (len(found.train), len(found.val), found.classes) == (8, 4, CLASSES)
    stored = np.array(Image.open(root / "annotations/training/0.png")).astype(int)
    assert np.array_equal(found.train.read_label(0), stored - 1) and IGNORED == -1


def test_ade20k_names_its_classes_in_a_table(root: Path) -> None:
    (root / "classes.txt").unlink()
    (root / "objectInfo150.txt").write_text(
        "Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t0.2\t1\t1\t1\twall, panel\n2\t0.1\t1\t1\t1\tred\n"
        "3\t0.1\t1\t1\t0\tgreen\n4\t0.1\t1\t1\t0\tblue\n"
    )
    assert open_scenes(str(root), None).classes == ["wall", "red", "green", "blue"]


def test_pairs_of_folders_ignore_255_and_begin_at_0(root: Path) -> None:
    (root / "classes.txt").unlink()
    found = open_scenes(**folders(root))
    assert found.classes == ["0", "1", "2", "3", "4"]  # counted in the label images
    assert found.train.read_label(0).min() == 0
    zeroed = open_scenes(**folders(root), ignore_index=0)
    assert zeroed.classes == ["1", "2", "3", "4"] and zeroed.train.read_label(0).min() == IGNORED


def test_palettes_and_16_bits_are_numbers(root: Path) -> None:
    path = root / "annotations/training/0.png"
    numbers = np.array(Image.open(path))
    expected = numbers.astype(int) - 1
    palette = Image.fromarray(numbers).convert("L")
    palette.putpalette([7, 99, 3] * 256)
    for image in (palette, Image.fromarray(numbers.astype(np.uint16))):
        image.save(path)
        assert np.array_equal(open_scenes(str(root), None).train.read_label(0), expected)


def _spoil_colours(path: Path) -> None:
    Image.open(path).convert("RGB").save(path)


def _spoil_class(path: Path) -> None:
    numbers = np.array(Image.open(path))
    numbers[3, 4] = 9
    Image.fromarray(numbers).save(path)


def _spoil_size(path: Path) -> None:
    Image.open(path).resize((10, 20)).save(path)


SPOILT = [
    (_spoil_colours, r"its label image .*/0.png: colours \(RGB\) in place of numbers"),
    (_spoil_class, "its label image .*/0.png has class 9, not 1 to 4, nor 0 for none"),
    (_spoil_size, "its label image has 10 x 20 pixels, the image 40 x 32"),
    (lambda path: path.unlink(), "its label image .*/0.png: No such file or directory"),
    (lambda path: path.write_bytes(b"nothing"), "its label image .*/0.png: not an image"),
]


@pytest.mark.parametrize(("spoil", "message"), SPOILT)
def test_an_image_whose_labels_are_wrong_is_skipped_and_named(root: Path, spoil: Any, message: str) -> None:
    for part in ("training", "validation"):
        spoil(root / "annotations" / part / "0.png")
    found = open_scenes(str(root), None)
    [batch] = crops(found, global_batch=8, last_step=1)
    [(name, reason)] = batch["bad"]
    assert name == found.train.name(0) and batch["images"].shape == (8, 3, 32, 32)
    assert re.match(message, reason)
    seen = [batch for batch in load_whole(found.val, short_side=32) if not batch["bad"]]
    assert [batch["index"] for batch in seen] == [1, 2, 3]


def crops(scenes: Scenes, **settings: Any) -> Any:
    usual: dict[str, Any] = {"size": 32, "seed": 0, "first_step": 0, "scale": (0.5, 2.0), "fill": (1, 2, 3)}
    return load_crops(scenes.train, **(usual | settings))


def test_no_usable_image_is_an_error(root: Path) -> None:
    for path in (root / "annotations/training").iterdir():
        _spoil_size(path)
    with pytest.raises(RunError, match="no readable image in .* after 8 in a row"):
        next(crops(open_scenes(str(root), None), global_batch=4, last_step=1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": ""}, "data is not given; expected a folder in ADE20K's layout"),
        ({"labels": None}, r"without a training part \(images/training and annotations/training\); expected a folder"),
        (
            {"val_data": None},
            "val_data is not given; expected a folder in ADE20K's layout .*, or --data IMAGES --labels",
        ),
        ({"val_labels": None}, "val_labels is not given; expected a folder in ADE20K's layout"),
        ({"labels": "none"}, "labels is none, which is no folder; expected a folder of PNGs"),
        ({"labels": "{root}/images"}, "has no label image for any of the 8 images in .*; expected PNGs of their names"),
        ({"data": "samples"}, "data is samples, which is no folder of images; expected"),
        ({"classes": Path("none.txt")}, "classes is none.txt: .*; expected a text file with a name in each line"),
        ({"classes": Path("{root}/one.txt")}, "classes is .*one.txt with 1 names; expected two or more"),
    ],
)
def test_refusals(root: Path, change: dict[str, Any], message: str) -> None:
    (root / "one.txt").write_text("thing\n\n")
    change = {k: type(v)(str(v).format(root=root)) if isinstance(v, str | Path) else v for k, v in change.items()}
    with pytest.raises(RequestError, match=message):
        open_scenes(**(folders(root) | change))


def test_a_layout_without_validation_is_refused(root: Path) -> None:
    shutil.rmtree(root / "images/validation")
    with pytest.raises(RequestError, match="without a validation part .images/validation and annotations/validation"):
        open_scenes(str(root), None)


def test_label_images_of_one_class_are_refused(root: Path) -> None:
    (root / "classes.txt").unlink()
    for path in (root / "annotations/training").iterdir():
        numbers = np.array(Image.open(path))
        Image.fromarray(np.minimum(numbers, 1)).save(path)
    with pytest.raises(RunError, match="have one class at most, besides 0 for none; expected two or more"):
        open_scenes(str(root), None)


def test_crops_are_functions_of_seed_epoch_and_image(root: Path) -> None:
    scenes = open_scenes(str(root), None)
    whole = list(crops(scenes, global_batch=4, last_step=4))
    later = list(crops(scenes, global_batch=4, first_step=2, last_step=4, num_workers=1))
    parts = list(crops(scenes, global_batch=4, first_step=3, last_step=4, accumulation=2))
    for one, other in zip(whole[2:], later, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in ("images", "labels", "keys"))
    assert torch.equal(whole[3]["images"], torch.cat([part["images"] for part in parts]))
    assert not torch.equal(whole[0]["keys"], whole[2]["keys"])  # another epoch


def test_a_crop_and_its_labels_show_the_same_place() -> None:
    """The image's red is the label, so they must stay equal; what lies beyond is filled and ignored."""
    labels = np.arange(20 * 30, dtype=np.int16).reshape(20, 30) % 7
    pixels = torch.from_numpy(labels).to(torch.uint8).expand(3, 20, 30)
    crop, numbers = random_crop(pixels, labels, 24, [0.5] * 20, fill=(9, 8, 7))
    assert numbers.shape == (24, 24) and torch.equal(crop[0, :20].short(), numbers[:20])
    assert torch.equal(numbers[:20], torch.from_numpy(labels[:, 3:27]))  # the middle of 7 places
    assert (numbers[20:] == IGNORED).all() and (crop[2, 20:] == 7).all()


def test_a_crop_of_one_class_is_drawn_again() -> None:
    labels = np.zeros((10, 40), dtype=np.int16)
    labels[:, 30:] = 1
    pixels = torch.zeros(3, 10, 40, dtype=torch.uint8)
    draws = [0.0, 0.0, 0.0, 0.2, 0.0, 0.8] + [0.0] * 14  # left 0, 6 and 24 of 31
    _, numbers = random_crop(pixels, labels, 10, draws, fill=(0, 0, 0))
    assert numbers.float().mean() == pytest.approx(0.4)


def test_resized_images_and_labels_cover_the_same_extent(root: Path) -> None:
    pixels, size = decode_resized((root / "images/training/0.png").read_bytes(), 64)
    assert pixels.shape == (3, 64, 80) and size == (32, 40)
    labels = np.array([[0, 1], [2, 3]])
    assert np.array_equal(resize_labels(labels, (4, 6)), np.kron(labels, np.ones((2, 3), int)))
    assert np.array_equal(resize_labels(np.kron(labels, np.ones((3, 3), int)), (2, 2)), labels)
    wide = np.zeros((1, 9000, 3), np.uint8)
    with pytest.raises(BadImage, match="it has 9000 x 1 pixels, and would be enlarged to 4608000 x 512"):
        decode_resized(wide, 512)


def test_colour_jitter_is_what_its_parts_say() -> None:
    """Grey keeps no hue; each effect appears alone in some image, with the range that is stated."""
    keys = torch.arange(4000) * 7919
    images = torch.full((4000, 3, 1, 1), 100, dtype=torch.uint8)
    grey = jitter_colours(images, keys).flatten(1)
    torch.testing.assert_close(grey[:, :1].expand(-1, 3), grey, atol=0.2, rtol=0)  # YIQ is rounded to 4 digits
    assert grey.min() < 45 and grey.max() > 185  # (100 -+ 32) * (1 -+ 0.5), at most
    assert ((grey[:, 0] - 100).abs() < 0.1).float().mean() == pytest.approx(0.25, abs=0.03)  # neither of the two
    assert jitter_colours(images[:1], keys[:1]).equal(jitter_colours(images[:1], keys[:1]))
    images[:, 1:] = 50
    red = jitter_colours(images, keys).flatten(1)
    luma = red @ torch.tensor([0.299, 0.587, 0.114])
    plain = (luma - luma.median()).abs() < 0.1  # neither brightness nor contrast
    spread = (red[plain, 0] - red[plain, 1]) / 50
    assert plain.float().mean() == pytest.approx(0.25, abs=0.05) and spread.min() > 0.2 and spread.max() < 1.8
