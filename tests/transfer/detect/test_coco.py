"""Annotation files in COCO's format: what is read, what is skipped and counted, what is refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as reference

import shapes
from fastmim.data.unreadable import BadImage
from fastmim.errors import RequestError
from fastmim.transfer.detect.coco import open_scenes
from fastmim.transfer.detect.outlines import checked, from_mask, to_mask

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:pycocotools")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return shapes.draw_coco(tmp_path / "coco")


def test_the_layout_of_coco_is_read(data: Path) -> None:
    found = open_scenes(str(data))
    content = shapes.read(data)
    assert (len(found.train), len(found.val)) == (8, 4) and found.train.remarks == ()
    assert found.train.classes == ["square", "disc", "triangle"] and found.train.categories == [1, 3, 7]
    assert found.train.has_masks and found.train.name(0) == str(data / "train2017" / "0.png")
    truth = found.train.ground_truth(range(8))
    assert [a["bbox"] for a in truth["annotations"]] == [a["bbox"] for a in content["annotations"]]
    for own, given in zip(truth["annotations"], content["annotations"], strict=True):
        assert (own["image_id"], own["category_id"], own["iscrowd"], own["area"]) == tuple(
            given[name] for name in ("image_id", "category_id", "iscrowd", "area")
        )
        assert own["segmentation"] == given["segmentation"]
    assert truth["categories"] == content["categories"]
    again = pickle.loads(pickle.dumps(found.train))  # noqa: S301 - as data workers get it
    assert again.read(3) == (data / "train2017" / "3.png").read_bytes() and list(again.objects_of(1)) == [2, 3]


def test_files_and_folders_of_any_name(data: Path, tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(data / "train2017")
    (tmp_path / "b").symlink_to(data / "val2017")
    own = {"val_data": str(shapes.file_of(data, "val")), "val_images": str(tmp_path / "b")}
    found = open_scenes(str(shapes.file_of(data)), str(tmp_path / "a"), **own)
    assert found.val.name(1) == str(tmp_path / "b" / "1.png")
    found = open_scenes(str(data), val_data=str(data), val_images=str(tmp_path / "b"))
    assert len(found.val) == 4


def test_masks_are_those_of_cocos_tools(data: Path) -> None:
    scenes = open_scenes(str(data)).train
    for index in range(len(scenes)):
        height, width = scenes.sizes[index].tolist()
        for number in scenes.objects_of(index):
            given = json.loads(scenes.objects.outlines[number])
            encoded = reference.frPyObjects(given, height, width)
            expected = reference.decode(reference.merge(encoded) if isinstance(given, list) else encoded)
            mask = to_mask(scenes.objects.outlines[number], height, width)
            assert mask.shape == (height, width) and np.array_equal(mask, expected) and mask.any()


@pytest.mark.parametrize("seed", range(3))
def test_compressed_run_lengths(seed: int) -> None:
    mask = np.random.default_rng(seed).random((37, 53)) < (0.5, 0.02, 0.0)[seed]
    expected = reference.encode(np.asfortranarray(mask.astype(np.uint8)))
    found = from_mask(mask)
    assert found == {"size": [37, 53], "counts": expected["counts"].decode()}
    assert np.array_equal(to_mask(checked(found, 37, 53), 37, 53), mask)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ("a", "end in a number"),
        ("0", "do not sum to its 4 x 4 pixels"),
        ("\n", "cannot be read"),
        ("o" * 99, "cannot be read"),
        ("@" * 3, "do not sum to"),
    ],
)
def test_damaged_run_lengths_make_an_image_unusable(counts: str, message: str) -> None:
    with pytest.raises(BadImage, match=message):
        to_mask(checked({"size": [4, 4], "counts": counts}, 4, 4), 4, 4)


def test_an_image_without_objects_stays(data: Path) -> None:
    content = shapes.read(data)
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 13]
    shapes.write(data, "train", content)
    scenes = open_scenes(str(data)).train
    assert len(scenes) == 8 and list(scenes.objects_of(3)) == []


def test_without_masks_there_are_boxes_alone(data: Path) -> None:
    assert not open_scenes(str(data), masks=False).val.has_masks
    for part in ("train", "val"):
        content = shapes.read(data, part)
        for annotation in content["annotations"]:
            annotation.pop("segmentation")
        shapes.write(data, part, content)
    found = open_scenes(str(data))
    assert not found.train.has_masks and not found.val.has_masks
    assert "segmentation" not in found.val.ground_truth([0])["annotations"][0]
    with pytest.raises(
        RequestError, match=r"without an object that can be used \(16 with no outline\); expected boxes"
    ):
        open_scenes(str(data), masks=True)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"bbox": [4, 4, 0, 9]}, "a box of no area"),
        ({"bbox": [4, 4, 9, -1]}, "a box of no area"),
        ({"bbox": [400, 4, 9, 9]}, "a box outside the image"),
        ({"bbox": [-9, 4, 9, 9]}, "a box outside the image"),
        ({"category_id": 2}, "an unknown category"),
        ({"image_id": 99}, "an unknown image"),
        ({"segmentation": [[1, 1, 5, 5]]}, "an outline of fewer than three points"),
        ({"segmentation": [[1, 1, 5]]}, "an outline that is no list of x, y, x, y, ..."),
        ({"segmentation": [[1, 1, 5, 5, 5, "a"]]}, "an outline that is no list of x, y, x, y, ..."),
        ({"segmentation": []}, "no outline"),
        ({"segmentation": None}, "no outline"),
        ({"segmentation": {"size": [9, 9], "counts": [81]}}, "run lengths of another size than the image"),
        ({"segmentation": {"size": [48, 64], "counts": [81]}}, "run lengths of another size than the image"),
        ({"segmentation": {"size": [48, 64], "counts": [-1, 1]}}, "run lengths that are no numbers of pixels"),
    ],
)
def test_objects_that_cannot_be_used_are_counted(data: Path, changes: dict[str, Any], reason: str) -> None:
    content = shapes.read(data)
    for annotation in content["annotations"][:2]:
        annotation |= changes
    shapes.write(data, "train", content)
    scenes = open_scenes(str(data)).train
    file = shapes.file_of(data)
    assert scenes.remarks == (f"note      skipped objects of {file}: 2 with {reason}",)
    assert len(scenes.objects.labels) == len(content["annotations"]) - 2


def test_polygons_of_two_points_are_left_out_of_an_outline() -> None:
    """COCO's own tools take four numbers for a box."""
    triangle = [1, 1, 5, 1, 5, 5]
    assert json.loads(checked([[2, 2, 7, 7], triangle], 9, 9)) == [triangle]
    far = json.loads(checked([[1, 1, 1e300, 1, 5, -1e300]], 9, 8))
    assert far == [[1, 1, 16, 1, 5, -9]]


def test_a_class_without_an_example_is_named(data: Path) -> None:
    content = shapes.read(data)
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] != 7]
    shapes.write(data, "train", content)
    assert open_scenes(str(data)).train.remarks == (f"note      no example of triangle in {shapes.file_of(data)}",)


def test_absent_images_are_skipped_and_counted_up_to_a_limit(data: Path) -> None:
    for name in ("2.png", "5.png"):
        (data / "train2017" / name).unlink()
    scenes = open_scenes(str(data), max_absent=0.25).train
    assert len(scenes) == 6 and scenes.ids == [10, 11, 13, 14, 16, 17]
    file, folder = shapes.file_of(data), data / "train2017"
    assert scenes.remarks == (f"note      skipped 2 images of {file} that are not in {folder}",)
    with pytest.raises(RequestError, match=r"lacks 2 of the 8 images of .*, such as 2.png; expected at most 5% to be"):
        open_scenes(str(data))
    content = shapes.read(data)
    shapes.write(data, "train", content | {"images": []})
    with pytest.raises(RequestError, match="lacks 0 of the 0 images of"):
        open_scenes(str(data))


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("images", {"id": None}, r"whose images\[1\] has the id None; expected a whole number"),
        ("images", {"id": 10}, "whose image 10 has the id of another; expected COCO's format"),
        ("images", {"width": 0}, "whose image 11 has 0 x 64 pixels; expected COCO's format"),
        ("images", {"file_name": "../secret.png"}, "has the file_name '../secret.png'; expected a path within"),
        ("images", {"file_name": "/etc/passwd"}, "has the file_name '/etc/passwd'; expected a path within"),
        ("images", {"file_name": 7}, "has the file_name 7; expected a path within"),
        ("annotations", {"bbox": [1, 2, 3]}, r"whose annotations\[1\] has the bbox \[1, 2, 3\]; expected left, top"),
        ("annotations", {"bbox": [1, 2, 3, 1e400]}, r"has the bbox \[1, 2, 3, inf\]; expected left, top"),
        ("categories", {"id": 1}, "with two categories 1; expected different numbers"),
        ("categories", {"name": "square"}, "with two categories called 'square'; expected different names"),
    ],
)
def test_wrong_entries_are_refused(data: Path, kind: str, changes: dict[str, Any], message: str) -> None:
    content = shapes.read(data)
    content[kind][1] |= changes
    shapes.write(data, "train", content)
    with pytest.raises(RequestError, match=message):
        open_scenes(str(data))


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        *(("images", key) for key in ("id", "file_name", "height", "width")),
        *(("annotations", key) for key in ("image_id", "category_id", "bbox")),
        *(("categories", key) for key in ("id", "name")),
    ],
)
def test_a_missing_key_is_named(data: Path, kind: str, key: str) -> None:
    content = shapes.read(data)
    del content[kind][2][key]
    shapes.write(data, "train", content)
    with pytest.raises(RequestError, match=rf'whose {kind}\[2\] has no "{key}"; expected COCO\'s format'):
        open_scenes(str(data))


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_a_file_that_is_not_cocos(data: Path, key: str) -> None:
    content = shapes.read(data)
    shapes.write(data, "train", {name: value for name, value in content.items() if name != key})
    with pytest.raises(RequestError, match=f'without a list "{key}"; expected an annotation file in COCO\'s format'):
        open_scenes(str(data))
    shapes.write(data, "train", [])
    with pytest.raises(RequestError, match='without a list "images"'):
        open_scenes(str(data))


def test_files_that_cannot_be_read(data: Path, tmp_path: Path) -> None:
    file = shapes.file_of(data)
    file.write_text("{")
    with pytest.raises(RequestError, match="which is not JSON .*; expected an annotation file in COCO's format"):
        open_scenes(str(data))
    file.unlink()
    with pytest.raises(
        RequestError, match="data is .*, without a training part .*; expected a folder in COCO's layout"
    ):
        open_scenes(str(data))
    with pytest.raises(RequestError, match="data is .*none.json, which does not exist; expected a folder in COCO's"):
        open_scenes(str(tmp_path / "none.json"), str(data / "train2017"))
    with pytest.raises(
        RequestError, match="val_data is .*none.json, which does not exist; expected a folder in COCO's"
    ):
        open_scenes(str(data), val_data=str(tmp_path / "none.json"))
    with pytest.raises(RequestError, match="data is .*: not a regular file; expected an annotation file"):
        open_scenes("/dev/null", str(data / "train2017"), val_data=str(data))


def test_parts_that_are_not_given(data: Path) -> None:
    file = str(shapes.file_of(data))
    with pytest.raises(RequestError, match="data is not given; expected a folder in COCO's layout"):
        open_scenes("")
    with pytest.raises(RequestError, match="val_data is not given; expected a folder in COCO's layout"):
        open_scenes(file, str(data / "train2017"))
    with pytest.raises(RequestError, match="images is not given; expected a folder in COCO's layout"):
        open_scenes(file, val_data=file, val_images=str(data))
    with pytest.raises(RequestError, match="val_images is not given; expected a folder in COCO's layout"):
        open_scenes(file, str(data / "train2017"), val_data=file)
    with pytest.raises(RequestError, match="images is .*none, which is no folder; expected a folder in COCO's layout"):
        open_scenes(file, str(data / "none"), val_data=file, val_images=str(data))
    shapes.file_of(data, "val").unlink()
    with pytest.raises(RequestError, match="val_data is .*, without a validation part"):
        open_scenes(str(data), val_data=str(data))


def test_nothing_to_learn(data: Path) -> None:
    content = shapes.read(data)
    shapes.write(data, "train", content | {"annotations": []})
    with pytest.raises(RequestError, match=r"without an object that can be used \(it has none\); expected boxes"):
        open_scenes(str(data))
    shapes.write(data, "train", content | {"categories": []})
    with pytest.raises(RequestError, match="without categories; expected at least one"):
        open_scenes(str(data))


def test_validation_has_the_categories_of_training(data: Path) -> None:
    content = shapes.read(data, "val")
    content["categories"][1]["name"] = "ring"
    shapes.write(data, "val", content)
    with pytest.raises(RequestError, match="val_data is .* with the categories 1 square, 3 ring, 7 triangle; expected"):
        open_scenes(str(data))


def test_deep_greys_have_one_range(tmp_path: Path) -> None:
    data = shapes.draw_coco(tmp_path / "coco", counts=(2, 1))
    for part, number in (("train", 0), ("train", 1), ("val", 0)):
        height, width = (48, 64) if number == 0 else (64, 56)
        greys = np.linspace(0, 4000, height * width).reshape(height, width).astype(np.uint16)
        Image.fromarray(greys).save(data / f"{part}2017" / f"{number}.png")
    found = open_scenes(str(data))
    assert found.train.decoding == found.val.decoding and found.train.decoding.levels is not None
    assert found.train.remarks[0].startswith("range ")
