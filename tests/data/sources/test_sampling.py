"""The range of a source's greys: found once, the same for all its images, kept by all that is made from it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import yaml
from PIL import Image

import fastmim
from conftest import SMALL, UNTRAINED
from fastmim import cli
from fastmim.data.augment import decode_center
from fastmim.data.labelled import open_labelled
from fastmim.data.settings import ImageConfig
from fastmim.data.sources import Source, open_source
from fastmim.errors import RequestError
from fastmim.weights import files
from pictures import encode, photograph

NUM = 16
TAILS = "0.1 and 99.9 % of the pixels of"


def greys(number: int, *, most: int = 4080) -> np.ndarray:
    """A part of the photograph in greys from 300, darker with each number."""
    part = photograph().convert("L").resize((60, 40)).crop((number, 0, number + 40, 40))
    return (300 + np.asarray(part).astype(np.int64) * (most - 300) // (255 + 8 * number)).astype(np.uint16)


def written(folder: Path, ending: str, kind: type = np.uint16, num: int = NUM, **options: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(num):
        path, values = folder / f"{number:02d}{ending}", greys(number, **options).astype(kind)
        if ending == ".png":
            Image.fromarray(values).save(path)
        else:
            tifffile.imwrite(path, values)
    return folder


def crops(source: Source) -> torch.Tensor:
    return torch.stack([decode_center(source.read(n), 40, source.decoding) for n in range(len(source))])


@pytest.fixture(scope="module")
def medical(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen pictures of 12 bits in 16-bit PNGs, in two classes."""
    root = tmp_path_factory.mktemp("medical")
    for name in ("a", "b"):
        written(root / name, ".png", num=NUM // 2)
    return root


def test_a_picture_of_12_bits_has_the_same_greys_in_any_file(tmp_path: Path) -> None:
    kinds = {"16-bit PNG": (".png", np.uint16), "16-bit TIFF": (".tif", np.int16), "float TIFF": (".tiff", np.float32)}
    found = {name: open_source(str(written(tmp_path / end, end, kind))) for name, (end, kind) in kinds.items()}
    seen = {name: crops(source) for name, source in found.items()}
    values = np.stack([greys(number) for number in range(NUM)])
    low, high = np.floor(np.percentile(values, 0.1)), np.ceil(np.percentile(values, 99.9))
    expected = np.rint((values.clip(low, high) - low) * 255 / (high - low)).astype(np.uint8)
    for name, source in found.items():
        assert source.decoding.levels == (low, high)
        assert np.array_equal(seen[name][:, 0].numpy(), expected), name
        assert source.remarks == (
            f"range     {low:,.0f} to {high:,.0f} of {name} become black to white ({TAILS} 16 images)",
        )
    means = expected.mean((1, 2))
    assert (np.diff(means) < 0).all(), "darker pictures stay darker"


@pytest.mark.parametrize(
    ("text", "levels"),
    [("16bit", (0, 65535)), ("0:4095", (0, 4095)), ("-1e3:3000.5", (-1000, 3000.5)), ("8bit", None)],
)
def test_a_range_is_taken_as_given(medical: Path, text: str, levels: tuple[float, float] | None) -> None:
    source = open_source(str(medical), ImageConfig(range=text))
    assert source.decoding.levels == levels
    if levels:
        low, high = levels
        assert source.remarks == (f"range     {low:,g} to {high:,g} of 16-bit PNG become black to white (--range)",)
        assert open_source(str(medical), ImageConfig(range=source.decoding.range)).decoding == source.decoding


@pytest.mark.parametrize("text", ["12bit", "4095", "5:5", "9:1", "0:inf", "nan:1", "0:1:2", ""])
def test_other_ranges_are_refused(text: str) -> None:
    with pytest.raises(RequestError, match="range is '.*'; expected auto, 8bit, 16bit or LOW:HIGH, such as 0:4095"):
        ImageConfig(range=text)


@pytest.mark.parametrize("num", [0, 715_827_883])
def test_pixel_limits_out_of_range_are_refused(num: int) -> None:
    with pytest.raises(RequestError, match=r"max_pixels is [\d,]+; expected 1 to 715,827,882"):
        ImageConfig(max_pixels=num)


def test_declared_bits_are_the_range(tmp_path: Path) -> None:
    """A PGM says what white is; Pillow scales its greys to 16 bits."""
    for number in range(3):
        values = greys(number).astype(">u2")
        (tmp_path / f"{number}.pgm").write_bytes(b"P5 40 40 4095\n" + values.tobytes())
    source = open_source(str(tmp_path))
    assert source.remarks == ("range     0 to 65,535 of 16-bit PPM become black to white (as the files declare)",)
    assert np.abs(crops(source)[0, 0].numpy() - np.rint(greys(0) * (255 / 4095))).max() <= 1


def test_hot_pixels_and_blank_pictures_do_not_decide(tmp_path: Path) -> None:
    written(tmp_path, ".png")
    spoilt = greys(3)
    spoilt[0, 0] = 65535
    Image.fromarray(spoilt).save(tmp_path / "03.png")
    source = open_source(str(tmp_path))
    assert source.decoding.levels and source.decoding.levels[1] < 4200
    for path in tmp_path.iterdir():
        Image.fromarray(np.full((8, 8), 700, np.uint16)).save(path)
    assert open_source(str(tmp_path)).decoding.levels == (699, 701)


def test_pictures_that_the_range_does_not_suit_are_counted(tmp_path: Path) -> None:
    written(tmp_path / "dark", ".png", num=4, most=900)
    written(tmp_path / "bright", ".png", num=4, most=60_000)
    remarks = open_source(str(tmp_path)).remarks
    assert remarks[1] == (
        "note      4 of 8 such images lie outside of this range, or within less than a sixteenth of it: "
        "give --range, or train on each kind apart"
    )


def test_sources_of_8_bits_have_no_range_and_jpegs_are_not_opened(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "A.JPG").write_bytes(b"not read")
    for number, ending in enumerate(("jpeg", "jpg", "jpe", "jfif")):
        (tmp_path / f"{number}.{ending}").write_bytes(b"not read")
    reads: list[str] = []
    monkeypatch.setattr("fastmim.data.sources.files.read_regular", lambda path: reads.append(path))
    source = open_source(str(tmp_path))
    assert (source.decoding.range, source.remarks, reads) == ("8bit", (), [])
    monkeypatch.undo()
    Image.open(photos / "00.jpg").save(tmp_path / "a.png")
    assert open_source(str(tmp_path)).decoding.range == "8bit"


def test_what_decoding_leaves_out_is_counted(tmp_path: Path) -> None:
    pictures = [photograph().resize((30, 20)), photograph().resize((30, 20)).rotate(90)]
    pictures[0].save(tmp_path / "pages.tif", save_all=True, append_images=pictures[1:])
    pictures[0].save(tmp_path / "one.tif")
    pictures[0].save(tmp_path / "moving.webp", save_all=True, append_images=pictures[1:])
    four = bytearray(encode(pictures[0].convert("RGBA"), "TIFF"))
    at = four.index(b"\x52\x01\x03\x00\x01\x00\x00\x00") + 8  # ExtraSamples, 2: alpha
    four[at] = 0
    (tmp_path / "four.tif").write_bytes(bytes(four))
    (tmp_path / "broken.tif").write_bytes(b"II*\0")
    assert sorted(open_source(str(tmp_path)).remarks) == [
        "note      1 of 4 images looked at have channels besides grey, red, green, blue and alpha, which are left out",
        "note      2 of 4 images looked at have several pages or frames: the first one is used",
    ]


def test_a_run_keeps_its_range_and_all_that_is_made_from_it_has_it(
    medical: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pre-training, resumed; then a fine-tuning on other pictures, predictions, features and a probe."""
    expected = open_source(str(medical)).decoding.range
    run = tmp_path / "run"
    settings = SMALL | {"data": str(medical), "out": run, "steps": 2}
    fastmim.pretrain(**settings)
    assert f"of 16-bit PNG become black to white ({TAILS}" in capsys.readouterr().out
    assert yaml.safe_load((run / "config.yaml").read_text())["range"] == expected
    assert files.read(run)[1]["range"] == expected

    with monkeypatch.context() as patched:
        patched.setattr("fastmim.data.sources.sampling._Sample.levels", None)  # nothing measures it again
        fastmim.pretrain(**settings)
        fastmim.pretrain(**settings, range="auto")
        pictures = set()
        for more in ([], ["--range", expected], ["--range", "16bit"]):
            with pytest.raises(SystemExit) as done:
                cli.main(["visualise", str(run), "--out", str(tmp_path / "x.png"), *more])
            assert done.value.code == 0
            pictures.add((tmp_path / "x.png").read_bytes())
        assert len(pictures) == 2  # the run's own range is taken without being named
        brighter = written(tmp_path / "brighter" / "a", ".png", most=6000).parent
        written(brighter / "b", ".png", most=6000)
        tuned = tmp_path / "tuned"
        common = {"num_workers": 0, "device": "cpu"}
        fastmim.finetune(
            weights=str(run),
            data=str(brighter),
            out=tuned,
            img_size=32,
            batch_size=8,
            steps=1,
            trackers="none",
            **common,
        )
        assert "(as for the weights)" in capsys.readouterr().out
        assert yaml.safe_load((tuned / "config.yaml").read_text())["range"] == expected
        assert files.read(tuned)[1]["range"] == expected
        fastmim.predict(weights=str(tuned), data=str(brighter), out=tmp_path / "p.csv", **common)
        fastmim.embed(weights=str(run), data=str(brighter), out=tmp_path / "f.npy", **common)
        fastmim.probe(weights=str(run), data=str(brighter), out=tmp_path / "probe.json", **common)
    assert capsys.readouterr().out.count("(as for the weights)") == 3
    for name in ("f.settings.json", "probe.json"):
        assert json.loads((tmp_path / name).read_text())["range"] == expected
    with pytest.raises(RequestError, match=f"another run .range '{expected}' -> '16bit'."):
        fastmim.pretrain(**settings, range="16bit")


def test_a_pack_has_the_range_of_its_making(medical: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "packed"
    fastmim.pack(medical, out, num_workers=0, codec="raw")
    source, packed = open_source(str(medical)), open_source(str(out))
    assert "become black to white" in capsys.readouterr().out
    assert torch.equal(crops(packed), crops(source)) and packed.decoding == source.decoding
    assert fastmim.pack(medical, out, num_workers=0, codec="raw").finished  # the same again: nothing to do
    with pytest.raises(RequestError, match="a pack already"):
        fastmim.pack(medical, out, num_workers=0, codec="raw", range="16bit")
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps(manifest | {"range": "9:1"}))
    with pytest.raises(RequestError, match="invalid values for range"):
        open_source(str(out))
    del manifest["range"]  # as packs had it before there were ranges
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert open_source(str(out)).decoding.levels is None


def test_validation_images_have_the_range_of_the_training_images(medical: Path, tmp_path: Path) -> None:
    val = written(tmp_path / "a", ".png", most=9000).parent
    found = open_labelled(str(medical), val_data=str(val))
    assert found.val.decoding == found.train.decoding == open_source(str(medical)).decoding
    assert len(found.remarks) == 1


def test_an_untrained_backbone_has_no_range(medical: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fastmim.embed(**UNTRAINED, data=str(medical), out=tmp_path / "f.npy")
    assert TAILS in capsys.readouterr().out


def test_subsets_keep_the_decoding(medical: Path) -> None:
    train = open_labelled(str(medical), val_share=0.3).train
    assert train.decoding == open_source(str(medical)).decoding
    assert dataclasses.replace(train.decoding, levels=None).range == "8bit"
