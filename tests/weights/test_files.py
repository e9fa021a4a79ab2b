"""Weights files: loading by timm and fastmim, resampling, and refusals."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import fastmim
from conftest import SMALL
from fastmim import Backbone, RequestError, weights

VIT = "vit_tiny_patch16_224"
TINY = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
SWIN = {"embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4]}


def saved(path: Path, name: str = VIT, *, as_is: bool = False, **options: Any) -> Backbone:
    """A backbone with random weights, written to `path`."""
    backbone = Backbone(name, **options).eval()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.normal_(std=0.1)
    weights.save(path, backbone, about={"steps": 7, "recipe": None}, as_is=as_is)
    return backbone


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", [VIT, "swin_tiny_patch4_window7_224", "pvt_v2_b0", "convnext_atto"])
def test_timm_strictly_loads_weights_that_were_trained_at_128_px(tmp_path: Path, name: str) -> None:
    file = tmp_path / "w.safetensors"
    backbone = saved(file, name, img_size=128)
    model = timm.create_model(name, checkpoint_path=str(file)).eval()
    loaded = fastmim.load_backbone(file, backbone=name, backbone_args={})
    assert not loaded.training
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(loaded.forward_features(images), model.forward_features(images))
    resampled = [n for n, t in backbone.model.state_dict().items() if t.shape != loaded.state_dict()[n].shape]
    assert resampled == [n for n in backbone.model.state_dict() if n == "pos_embed" or n.endswith("bias_table")]
    for tensor_name, tensor in backbone.model.state_dict().items():
        if tensor_name not in resampled:
            assert torch.equal(loaded.state_dict()[tensor_name], tensor), tensor_name
    assert not list(tmp_path.glob("*.tmp"))


def test_at_the_training_size_weights_are_exact_from_a_run_and_resampled_from_a_file(
    tmp_path: Path, photos: Path
) -> None:
    out = tmp_path / "run"
    fastmim.pretrain(**(SMALL | {"data": str(photos), "out": out, "backbone_args": {}, "img_size": 64, "steps": 2}))
    trained = load_file(max((out / "checkpoints").iterdir()) / "model.safetensors")
    trained = {k.removeprefix("backbone.model."): v for k, v in trained.items() if k.startswith("backbone.")}
    assert equal(fastmim.load_backbone(out, img_size=64).state_dict(), trained)
    from_file = fastmim.load_backbone(out / weights.FILE, img_size=64).state_dict()
    assert [name for name in trained if not torch.equal(from_file[name], trained[name])] == ["pos_embed"]
    torch.testing.assert_close(from_file["pos_embed"], trained["pos_embed"], atol=0.15, rtol=0.1)
    shutil.rmtree(out / "checkpoints")
    with pytest.warns(UserWarning, match="no checkpoint of step 2: .* differ a little"):
        fastmim.load_backbone(out, img_size=64)


def test_as_is_weights_are_exact_at_their_own_size(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    backbone = saved(file, VIT, img_size=64, as_is=True)
    assert weights.read(file)[1]["arguments"] == {"img_size": [64, 64], "num_classes": 0}
    assert equal(fastmim.load_backbone(file).state_dict(), backbone.model.state_dict())
    other = Backbone(VIT, img_size=64)
    other.load_native_state_dict(weights.read(file)[0])
    assert equal(other.model.state_dict(), backbone.model.state_dict())


@pytest.mark.parametrize(
    ("name", "args", "size"),
    [
        (VIT, TINY, 48),
        ("swin_tiny_patch4_window7_224", SWIN, 64),
        ("twins_svt_small", {"depths": [1, 1, 1, 1]}, 160),
    ],
)
def test_other_sizes_are_resampled_for_every_kind_of_model(tmp_path: Path, name: str, args: Any, size: int) -> None:
    file = tmp_path / "w.safetensors"
    backbone = saved(file, name, args=args, img_size=32 if args == TINY else 128)
    model = fastmim.load_backbone(file, img_size=size).eval()
    backbone.set_input_size(size)
    images = torch.randn(1, 3, size, size)
    with torch.no_grad():
        expected = backbone(images)
        got = model.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)[-1]
    torch.testing.assert_close(got, expected, rtol=0.05, atol=0.05)
    with pytest.raises(RequestError, match=r"img_size is 3, which .* cannot take; expected a multiple"):
        fastmim.load_backbone(file, img_size=3)


def test_blocks_left_untrained_are_named(tmp_path: Path) -> None:
    saved(tmp_path / "w.safetensors", args=TINY | {"depth": 4}, img_size=32, encoder_depth=0.5)
    _, facts = weights.read(tmp_path / "w.safetensors")
    assert facts["untrained"] == ["blocks.2", "blocks.3"]
    assert (facts["trained_blocks"], facts["num_blocks"], facts["steps"]) == (2, 4, 7)


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        (
            {"backbone_args": TINY | {"num_heads": 6}},
            r"the weights hold num_heads 3, not 6: load them as what they are",
        ),
        ({"backbone_args": {}}, r"depth 2, not by default; embed_dim 48, not by default"),
        ({"backbone": "deit_tiny_patch16_224"}, r"hold backbone vit_tiny_patch16_224, not deit_tiny_patch16_224"),
        ({"backbone": "vit_teeny"}, "unknown backbone 'vit_teeny'"),
    ],
)
def test_weights_of_another_architecture_are_refused(tmp_path: Path, expected: dict[str, Any], message: str) -> None:
    saved(tmp_path / "w.safetensors", args=TINY, img_size=32)
    with pytest.raises(RequestError, match=message):
        fastmim.load_backbone(tmp_path / "w.safetensors", **expected)


def test_a_pretrained_tag_and_timms_prefix_do_not_change_the_architecture(tmp_path: Path) -> None:
    saved(tmp_path / "w.safetensors", args=TINY, img_size=32)
    fastmim.load_backbone(tmp_path / "w.safetensors", backbone="timm/vit_tiny_patch16_224.augreg_in21k")


def test_files_that_are_not_weights_are_refused(tmp_path: Path) -> None:
    whole, file = tmp_path / "whole.safetensors", tmp_path / "w.safetensors"
    saved(whole, args=TINY, img_size=32)

    file.write_bytes(whole.read_bytes()[:-1000])
    with pytest.raises(RequestError, match=r"which is damaged or not safetensors .*export it again"):
        fastmim.load_backbone(file)
    file.write_bytes(whole.read_bytes()[:100])
    with pytest.raises(RequestError, match="damaged or not safetensors"):
        fastmim.load_backbone(file)
    torch.save({"model": {}}, file)
    with pytest.raises(RequestError, match=r"damaged or not safetensors .*fastmim convert"):
        fastmim.load_backbone(file)
    save_file({"a": torch.zeros(1)}, file)
    with pytest.raises(RequestError, match=r"of format None; expected 'fastmim-weights-1'.*fastmim convert"):
        fastmim.load_backbone(file)
    with pytest.raises(
        RequestError, match=r"weights is '.*nothing'; expected a fastmim weights file or a finished run"
    ):
        fastmim.load_backbone(tmp_path / "nothing")
    with pytest.raises(RequestError, match="a finished run directory"):
        fastmim.load_backbone(tmp_path)


def test_pretraining_starts_from_given_weights_at_its_own_size(tmp_path: Path, photos: Path) -> None:
    file = tmp_path / "w.safetensors"
    begun = saved(file, args=TINY, img_size=48)
    settings = SMALL | {"data": str(photos), "backbone_args": TINY, "init": str(file), "steps": 1, "lr": 1e-12}
    fastmim.pretrain(**(settings | {"out": tmp_path / "run"}))
    got = fastmim.load_backbone(tmp_path / "run").state_dict()
    begun.set_input_size(32)
    for name, tensor in begun.model.state_dict().items():
        torch.testing.assert_close(got[name], tensor, rtol=0, atol=1e-6)
    with pytest.raises(RequestError, match="num_heads 3, not 6"):
        fastmim.pretrain(**(settings | {"out": tmp_path / "other", "backbone_args": TINY | {"num_heads": 6}}))
    assert not (tmp_path / "other").exists()


def test_windows_follow_the_size_and_others_are_refused(tmp_path: Path) -> None:
    name, file = "swin_tiny_patch4_window7_224", tmp_path / "w.safetensors"
    begun = saved(file, name, args=SWIN | {"window_size": 4}, img_size=64)
    same = Backbone(name, args=SWIN | {"window_size": 4}, img_size=64)
    weights.load_into(same, file)
    assert equal(same.model.state_dict(), begun.model.state_dict())
    weights.load_into(Backbone(name, args=SWIN | {"window_size": 8}, img_size=128), file)
    with pytest.raises(RequestError, match=r"does not fit swin_tiny.*take other weights, or the arguments"):
        weights.load_into(Backbone(name, args=SWIN | {"window_size": 8}, img_size=64), file)


def test_weights_files_have_the_default_permissions(tmp_path: Path) -> None:
    saved(tmp_path / "w.safetensors", args=TINY, img_size=32)
    (tmp_path / "new").touch()
    assert (tmp_path / "w.safetensors").stat().st_mode == (tmp_path / "new").stat().st_mode


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "hf-hub:evil/model"}, "metadata has architecture 'hf-hub:evil/model'; expected that of a timm"),
        ({"architecture": "local-dir:/tmp"}, "has architecture 'local-dir:/tmp'"),
        ({"arguments": {"pretrained": True}}, "has argument 'pretrained'"),
        ({"arguments": {"pretrained_cfg_overlay": {"url": "http://127.0.0.1:9/x"}}}, "has argument 'pretrained_cfg_overlay'"),
        ({"arguments": {"checkpoint_path": "/etc/hostname"}}, "has argument 'checkpoint_path'"),
        ({"arguments": []}, r"has arguments \[\]"),
        ({"arguments": {"no_such": 1}}, "does not hold the vit_tiny_patch16_224 that it says"),
        ({"img_size": "32"}, "has img_size '32'"),
        ({"untrained": None}, "has untrained None"),
        ({"untrained": [1]}, r"has untrained \[1\]"),
        ({"mean": "x"}, "has mean 'x'"),
        ({"mean": [1, "x", 2]}, r"has mean \[1, 'x', 2\]"),
        ({"std": [0, 1, 1]}, r"has std \[0, 1, 1\]"),
        ({"img_size": 0}, "has img_size 0"),
        ({"img_size": 10**6}, "has img_size 1000000"),
        ({"eval_crop": 0}, "has eval_crop 0"),
        ({"eval_crop": 1.5}, r"has eval_crop 1\.5"),
        ({"eval_crop": "all"}, "has eval_crop 'all'"),
        ({"trained_blocks": 3}, "has trained_blocks 3"),
        ({"arguments": None}, "has arguments None"),
        ({"arguments": TINY | {"img_size": 10**9}}, "has argument 'img_size' of 1000000000"),
        ({"arguments": TINY | {"depth": 10**6}}, "has argument 'depth' of 1000000;"),
        ({"arguments": TINY | {"depth": 20_000}}, "has argument 'depth' of 20000;"),
        ({"arguments": TINY | {"embed_dim": 6000}}, r"says \(cls_token \(1, 1, 48\) instead of \(1, 1, 6000\)\)"),
        ({"arguments": TINY | {"depth": 3, "img_size": 32}}, r"does not hold the .* that it says \(no blocks.2.norm1.weight\)"),
        ({"arguments": TINY | {"img_size": 4096}}, r"says \(pos_embed .* instead of"),
        ({"architecture": "resnet18", "arguments": {}}, r"does not hold the resnet18 that it says \(no conv1.weight\)"),
    ],
)  # fmt: skip
def test_metadata_that_is_not_ours_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """Nothing is fetched or opened because a file says so, and nothing ends in a traceback."""
    saved(tmp_path / "whole.safetensors", args=TINY, img_size=32)
    tensors, facts = weights.read(tmp_path / "whole.safetensors")
    weights.write(tmp_path / "w.safetensors", tensors, facts | changes)
    with pytest.raises(RequestError, match=message) as error:
        fastmim.load_backbone(tmp_path / "w.safetensors")
    assert "\n" not in str(error.value)


def test_metadata_that_is_no_json_or_is_missing_is_refused(tmp_path: Path) -> None:
    for metadata, message in (
        ({"img_size": "{"}, "has no JSON"),
        ({"architecture": "resnet18"}, "has no 'arguments'"),
        ({"arguments": "[" * 100_000}, "has no JSON"),
        ({"arguments": "9" * 5000}, "has no JSON"),
        ({"arguments": "{}"}, "has no 'img_size'"),
    ):
        save_file({"a": torch.zeros(1)}, tmp_path / "w.safetensors", {"format": "fastmim-weights-1"} | metadata)
        with pytest.raises(RequestError, match=message):
            weights.read(tmp_path / "w.safetensors")
