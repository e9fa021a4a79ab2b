"""Exports as their readers load them: timm, transformers, ONNX Runtime, torch.export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import fastmim
from fastmim import Backbone, RequestError, RunError, cli, weights
from fastmim.weights import export, files, graphs

VIT = "vit_tiny_patch16_224"
TINY = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
SWIN = "swin_tiny_patch4_window7_224"


def saved(path: Path, name: str = VIT, **options: Any) -> Path:
    """A weights file of a backbone with random weights."""
    backbone = Backbone(name, **options)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.normal_(std=0.1)
    weights.save(path, backbone, about={"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], "steps": 3})
    return path


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("vit") / "w.safetensors", args=TINY, img_size=32)


@pytest.fixture(scope="module")
def swin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Swin: its shifted windows are the most sensitive to the batch size."""
    args = {"embed_dim": 24, "depths": [2], "num_heads": [2], "window_size": 4}
    return saved(tmp_path_factory.mktemp("swin") / "w.safetensors", SWIN, args=args, img_size=64)


def expected_of(source: Path, images: Tensor, img_size: int | None = None) -> tuple[Tensor, Tensor]:
    model: Any = fastmim.load_backbone(source, img_size=img_size).eval()
    with torch.no_grad():
        return model.forward_features(images), model(images)


def images_of(size: int, count: int = 3) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("img_size", [None, 48])
def test_timms_hub_layout(tmp_path: Path, vit: Path, img_size: int | None) -> None:
    result = fastmim.export(vit, to="timm", out=tmp_path / "photos-v1.2", img_size=img_size)
    images = images_of(img_size or 32)
    model = eval(result.load, {"timm": timm}).eval()
    with torch.no_grad():
        assert torch.equal(model(images), expected_of(vit, images, img_size)[1])
    config = json.loads((result.path / "config.json").read_text())
    assert config["architecture"] == VIT and config["num_classes"] == 0
    assert config["model_args"]["img_size"] == [img_size or 32] * 2 and config["model_args"]["depth"] == 2
    fed = config["pretrained_cfg"]
    assert fed["mean"] == [0.4, 0.5, 0.6] and fed["std"] == [0.2, 0.3, 0.4]
    assert not {"tag", "license", "hf_hub_id"} & fed.keys()
    assert sorted(p.name for p in result.path.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert (result.max_difference, result.img_size) == (0, img_size or 32)


def test_transformers_reads_timms_hub_layout(tmp_path: Path, swin: Path) -> None:
    transformers = pytest.importorskip("transformers")
    fastmim.export(swin, to="timm", out=tmp_path / "d")
    model = transformers.TimmWrapperModel.from_pretrained(tmp_path / "d").eval()
    images = images_of(64)
    with torch.no_grad():
        output = model(images)
    features, embedding = expected_of(swin, images)
    assert torch.equal(output.last_hidden_state, features) and torch.equal(output.pooler_output, embedding)


def test_one_file_for_timm(tmp_path: Path, vit: Path) -> None:
    """A plain architecture at its default size loads by its name alone."""
    source = saved(tmp_path / "w.safetensors", VIT, img_size=64)
    result = fastmim.export(source, to="timm", out=tmp_path / "b.safetensors")
    images = images_of(224, 1)
    with torch.no_grad():
        got = timm.create_model(VIT, checkpoint_path=str(result.path)).eval().forward_features(images)
    assert torch.equal(got, expected_of(source, images)[0])

    result = fastmim.export(vit, to="timm", out=tmp_path / "48.safetensors", img_size=48)
    images = images_of(48)
    with torch.no_grad():
        got = eval(result.load, {"timm": timm}).eval().forward_features(images)
    assert torch.equal(got, expected_of(vit, images, 48)[0])
    assert torch.equal(expected_of(result.path, images)[0], got)  # still a weights file
    assert weights.read(result.path)[1]["img_size"] == 48


def test_state_dict(tmp_path: Path, swin: Path) -> None:
    result = fastmim.export(swin, to="state-dict", out=tmp_path / "s.safetensors")
    assert not [name for name in load_file(result.path) if name.startswith("head")]
    images = images_of(64)
    with torch.no_grad():
        got = eval(result.load, {"timm": timm}).eval()(images)
    assert torch.equal(got, expected_of(swin, images)[1])


def test_torch_export_takes_any_batch(tmp_path: Path, swin: Path) -> None:
    result = fastmim.export(swin, to="torch-export", out=tmp_path / "e.pt2")
    about = {"fastmim.json": ""}
    program = torch.export.load(result.path, extra_files=about).module()
    for count in (1, 5):
        images = images_of(64, count)
        for got, expected in zip(program(images), expected_of(swin, images), strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    assert json.loads(about["fastmim.json"]) == {
        "architecture": SWIN, "img_size": 64, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4],
        "interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "center",
    }  # fmt: skip


def test_onnx_takes_any_batch(tmp_path: Path, swin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(graphs, "_ONE_FILE", 1000)  # as for weights of gigabytes
    result = fastmim.export(swin, to="onnx", out=tmp_path / "o.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["o.onnx", "o.onnx.data"]
    session = onnxruntime.InferenceSession(result.path, providers=["CPUExecutionProvider"])
    for count in (1, 5):
        images = images_of(64, count)
        got = session.run(["features", "embedding"], {"images": images.numpy()})
        for array, expected in zip(got, expected_of(swin, images), strict=True):
            np.testing.assert_allclose(array, expected.numpy(), rtol=0, atol=1e-4)
    assert json.loads(session.get_modelmeta().custom_metadata_map["fastmim"])["mean"] == [0.4, 0.5, 0.6]
    assert 0 < result.max_difference < 1e-4


def test_a_fine_tuned_classifier_is_exported_with_its_head(tmp_path: Path) -> None:
    model = timm.create_model(VIT, **TINY, img_size=32, num_classes=3, global_pool="avg").eval()
    facts = {"architecture": VIT, "arguments": timm.models.get_model_args(model), "img_size": 32, "num_blocks": 2}
    facts |= {"trained_blocks": 2, "untrained": [], "classes": ["ant", "bee", "cat"]}
    facts["arguments"] = facts["arguments"] | {"img_size": [32, 32]}
    weights.write(tmp_path / "w.safetensors", model.state_dict(), facts)
    images = images_of(32)
    with torch.no_grad():
        logits = model(images)
    timms = fastmim.export(tmp_path / "w.safetensors", to="timm", out=tmp_path / "d")
    assert torch.equal(eval(timms.load, {"timm": timm}).eval()(images), logits)
    assert json.loads((timms.path / "config.json").read_text())["label_names"] == ["ant", "bee", "cat"]
    program = fastmim.export(tmp_path / "w.safetensors", to="torch-export", out=tmp_path / "e.pt2").path
    torch.testing.assert_close(torch.export.load(program).module()(images)[1], logits)
    transformers = pytest.importorskip("transformers")
    classifier = transformers.TimmWrapperForImageClassification.from_pretrained(timms.path).eval()
    with torch.no_grad():
        assert torch.equal(classifier(images).logits, logits)
    assert classifier.config.id2label == {0: "ant", 1: "bee", 2: "cat"}


# Refusals


@torch.library.custom_op("fastmim_test::twist", mutates_args=())
def twist(x: Tensor) -> Tensor:
    return x.flip(-1).clone()


@twist.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Odd(nn.Module):
    """A ViT's patch embedding after an operation that exporters do not know."""

    def __init__(self, embed: nn.Module, odd: Any) -> None:
        super().__init__()
        self.embed, self.odd = embed, odd

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("embed"), name)

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(self.odd(x))


@pytest.fixture
def odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write a weights file whose model contains an odd operation on export."""

    def write(what: Any) -> Path:
        source = saved(tmp_path / "w.safetensors", args=TINY, img_size=32)
        build = files.build

        def with_odd(*args: Any, **kwargs: Any) -> nn.Module:
            model: Any = build(*args, **kwargs)
            model.patch_embed = Odd(model.patch_embed, what)
            return model

        monkeypatch.setattr(files, "build", with_odd)
        return source

    return write


def test_an_operator_that_onnx_lacks_is_named(tmp_path: Path, odd: Any, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    source = odd(twist)
    with pytest.raises(SystemExit, match="1"):
        cli.main(["export", str(source), "--to", "onnx", "--out", str(tmp_path / "out" / "o.onnx")])
    said = capsys.readouterr().err
    assert "ONNX cannot express vit_tiny_patch16_224: it has no operator for fastmim_test.twist; expected" in said
    assert said.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_model_that_cannot_be_traced_is_refused(tmp_path: Path, odd: Any) -> None:
    source = odd(lambda x: x if float(x.sum()) > 0 else -x)
    with pytest.raises(RunError, match=r"torch\.export cannot trace vit_tiny_patch16_224: .*control flow"):
        fastmim.export(source, to="torch-export", out=tmp_path / "e.pt2")
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


def test_an_export_with_other_outputs_is_removed(tmp_path: Path, vit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save_rounded(path: Path, tensors: dict[str, Tensor]) -> None:
        save_file({name: tensor.bfloat16().float() for name, tensor in tensors.items()}, path)

    monkeypatch.setattr(export, "save_tensors", save_rounded)
    with pytest.raises(RunError, match=r"exported to state-dict differs from the network by \d.*; expected at most"):
        fastmim.export(vit, to="state-dict", out=tmp_path / "s.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (
            {"to": "onxn"},
            r"to is 'onxn'; expected one of timm, hf, state-dict, onnx, torch-export; did you mean onnx\?",
        ),
        ({"to": "onnx"}, r"out is .*x; expected a file ending in \.onnx for onnx"),
        ({"to": "timm", "out": "x.pth"}, r"expected a directory or a file ending in \.safetensors for timm"),
        ({"to": "timm", "out": "there"}, r"which exists; expected a path that is free: take another, or --overwrite"),
        ({"to": "timm", "out": "w.safetensors"}, "which exists; expected a path that is free"),
        ({"to": "timm", "out": "file", "overwrite": True}, r"a file that exists; expected a path that is free"),
        ({"to": "state-dict", "out": "d.safetensors", "overwrite": True}, "a directory that exists"),
        ({"to": "timm", "out": "file/x"}, r"expected a path that can be written"),
        ({"to": "timm", "img_size": 3}, r"img_size is 3, which vit_tiny_patch16_224 cannot take"),
    ],
)
def test_requests_that_are_refused(tmp_path: Path, vit: Path, request_: dict[str, Any], message: str) -> None:
    for name in ("there", "d.safetensors"):
        (tmp_path / name).mkdir()
    for name in ("w.safetensors", "file"):
        (tmp_path / name).touch()
    with pytest.raises(RequestError, match=message):
        fastmim.export(vit, **(request_ | {"out": tmp_path / request_.get("out", "x")}))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.safetensors", "file", "there", "w.safetensors"]


def test_overwriting_keeps_other_files(tmp_path: Path, vit: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "photo.jpg").touch()
    (tmp_path / "d" / "config.json").write_text("old")
    result = fastmim.export(vit, to="timm", out=tmp_path / "d", overwrite=True)
    assert sorted(p.name for p in result.path.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "photo.jpg",
    ]
    assert json.loads((result.path / "config.json").read_text())["architecture"] == VIT


def test_missing_packages_are_named(tmp_path: Path, vit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "find_spec", lambda name: None if name == "onnxruntime" else name)
    with pytest.raises(RequestError, match=r"which needs onnxruntime: pip install 'fastmim\[onnx\]'"):
        fastmim.export(vit, to="onnx", out=tmp_path / "o.onnx")


def test_the_command_says_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = saved(tmp_path / "w.safetensors", args=TINY | {"depth": 4}, img_size=32, encoder_depth=0.5)
    with pytest.raises(SystemExit, match="0"):
        cli.main(["export", str(source), "--to", "timm", "--out", str(tmp_path / "d"), "--img-size", "48"])
    said = capsys.readouterr().out
    assert "for images of 48 px" in said and "the largest difference on 8 photographs is 0.0e+00" in said
    assert f"timm.create_model('local-dir:{tmp_path / 'd'}', pretrained=True)" in said
    assert "untrained blocks.2, blocks.3: left out of pre-training" in said
