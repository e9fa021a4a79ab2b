"""Conversion of what FastMIM, MAE and SimMIM publish beside pre-trained ViTs and Swins, and of their users' own files."""

from __future__ import annotations

import pickle
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

import fastmim
from conftest import SMALL
from fastmim import RequestError, cli, weights
from fastmim.weights import foreign
from foreign_models import (
    Maker,
    State,
    attend,
    batch_norm,
    cmt_forward,
    convolve,
    features_of,
    mlp,
    norm,
    pvt_forward,
    swin_forward,
    tokens,
)
from tuning import finetune

SMALL_VIT: dict[str, Any] = {"embed_dim": 48, "depth": 2, "num_heads": 3}
PVT: dict[str, Any] = {"embed_dims": [16, 32, 32, 48], "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 3]}


def saved(tmp_path: Path, state: State, **more: Any) -> Path:
    torch.save({"model": state, **more}, tmp_path / "c.pth")
    return tmp_path / "c.pth"


def logits_of(converted: Any, images: Tensor) -> Tensor:
    """Of the plain timm model that the weights file's metadata describes."""
    _, facts = weights.read(converted.path)
    model = timm.create_model(facts["architecture"], **facts["arguments"], checkpoint_path=converted.path)
    with torch.no_grad():
        return model.eval()(images)


def finetuned_vit(*, pooled: bool, classes: int = 5) -> State:
    """A ViT of MAE's and FastMIM's fine-tuning code; by default they pool the patches, and the norm follows."""
    make = Maker()
    make.vit(width=48, depth=2, grid=4)
    if pooled:
        for part in ("weight", "bias"):
            make.state[f"fc_norm.{part}"] = make.state.pop(f"norm.{part}")
    make.linear("head", 48, classes)
    return make.state


def vit_logits(state: State, images: Tensor) -> Tensor:
    x = torch.cat([state["cls_token"].expand(len(images), -1, -1), tokens(state, images)], dim=1) + state["pos_embed"]
    for index in range(2):
        name = f"blocks.{index}"
        x = x + attend(state, f"{name}.attn", norm(state, f"{name}.norm1", x, 1e-6), 3)
        x = x + mlp(state, f"{name}.mlp", norm(state, f"{name}.norm2", x, 1e-6))
    pooled = "fc_norm.weight" in state
    x = norm(state, "fc_norm", x[:, 1:].mean(1), 1e-6) if pooled else norm(state, "norm", x, 1e-6)[:, 0]
    return F.linear(x, state["head.weight"], state["head.bias"])


@pytest.mark.parametrize("pooled", [True, False])
def test_a_fine_tuned_vit_with_its_head(tmp_path: Path, pooled: bool) -> None:
    state, images = finetuned_vit(pooled=pooled), torch.randn(2, 3, 64, 64)
    given: dict[str, Any] = {"backbone": "vit_tiny_patch16_224", "backbone_args": SMALL_VIT}
    file, out = saved(tmp_path, state), tmp_path / "w.safetensors"
    result = fastmim.convert(file, out=out, keep_head=True, **given)
    assert result.num_classes == 5 and "classifier kept, 5 classes" in result.describe() and not result.dropped
    torch.testing.assert_close(logits_of(result, images), vit_logits(state, images), rtol=1e-4, atol=1e-5)
    # As any fine-tuned weights: the backbone alone is opened, an export keeps the head.
    assert weights.read(out)[1]["classes"] == ["0", "1", "2", "3", "4"]
    assert weights.open_weights(str(out)).load().img_size == 64
    exported = fastmim.export(out, to="state-dict", out=tmp_path / "e.safetensors")
    assert "num_classes=5" in exported.load

    result = fastmim.convert(file, out=out, overwrite=True, **given)
    assert result.num_classes == 0 and result.dropped == ("head.weight", "head.bias")
    assert result.arguments == SMALL_VIT | ({"global_pool": "avg"} if pooled else {})
    model: Any = fastmim.load_backbone(out).eval()
    with torch.no_grad():
        logits = F.linear(model(images), state["head.weight"], state["head.bias"])
    torch.testing.assert_close(logits, vit_logits(state, images), rtol=1e-4, atol=1e-5)


def test_fine_tuning_and_pre_training_go_on_from_a_fine_tuned_vit(tmp_path: Path, labelled: Path) -> None:
    settings: dict[str, Any] = {"backbone": "vit_tiny_patch16_224", "backbone_args": SMALL_VIT}
    result = fastmim.convert(saved(tmp_path, finetuned_vit(pooled=True)), out=tmp_path / "w.safetensors", **settings)
    tuned = finetune(tmp_path / "ft", labelled, weights=str(result.path), steps=1, lr=1e-9)
    tensors, before = weights.read(tuned.weights)[0], weights.read(result.path)[0]
    torch.testing.assert_close(tensors["fc_norm.weight"], before["fc_norm.weight"])
    init = {"init": str(result.path), "data": str(labelled / "train"), "out": tmp_path / "run", "steps": 1}
    arguments = {"backbone_args": SMALL_VIT | {"global_pool": "avg"}}  # as `continue` says
    assert fastmim.pretrain(**(SMALL | arguments | init | {"img_size": 64})).finished


def test_maes_default_file_is_found_without_being_named(tmp_path: Path) -> None:
    make = Maker()
    make.vit(width=192, depth=12, grid=14)
    for part in ("weight", "bias"):
        make.state[f"fc_norm.{part}"] = make.state.pop(f"norm.{part}")
    make.linear("head", 192, 10)
    result = fastmim.convert(saved(tmp_path, make.state), out=tmp_path / "w.safetensors")
    assert (result.backbone, result.arguments) == ("vit_tiny_patch16_224", {"global_pool": "avg"})
    assert result.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize("name", ["fc_norm", "norm"])  # in FastMIM's fine-tuning, and in Swin's and SimMIM's code
def test_a_fine_tuned_swin(tmp_path: Path, name: str) -> None:
    make, heads = Maker(), (2, 4)
    make.swin("", width=32, depths=(2, 2), heads=heads, window=2, side=32)
    features = swin_forward(make.state, images := torch.randn(2, 3, 32, 32), prefix="", heads=heads, window=2)
    for part in ("weight", "bias"):
        make.state[f"{name}.{part}"] = make.state.pop(f"norm.{part}")
    make.linear("head", 64, 5)
    given = {"embed_dim": 32, "depths": [2, 2], "num_heads": list(heads)}
    settings: dict[str, Any] = {"backbone": "swin_tiny_patch4_window7_224", "backbone_args": given}
    file, out = saved(tmp_path, make.state), tmp_path / "w.safetensors"
    result = fastmim.convert(file, out=out, **settings)
    assert result.method == "Swin Transformer" and result.mean == (0.485, 0.456, 0.406)
    torch.testing.assert_close(features_of(result, images), features, rtol=1e-4, atol=1e-5)
    result = fastmim.convert(file, out=out, keep_head=True, overwrite=True, **settings)
    expected = F.linear(features.mean((1, 2)), make.state["head.weight"], make.state["head.bias"])
    torch.testing.assert_close(logits_of(result, images), expected, rtol=1e-4, atol=1e-5)

    make.norm("norm" if name == "fc_norm" else "fc_norm", 64)
    with pytest.raises(RequestError, match=r"holds (fc_)?norm.weight and (fc_)?norm.weight, which are one tensor"):
        fastmim.convert(saved(tmp_path, make.state), out=out, overwrite=True, **settings)


@pytest.mark.parametrize("pretrained", [True, False])
def test_pvtv2(tmp_path: Path, pretrained: bool) -> None:
    make, prefix = Maker(), "encoder." if pretrained else ""
    make.pvt(prefix, widths=(16, 32, 32, 48), depth=1, reductions=(8, 4, 2, 1))
    if pretrained:
        make.decoder(48, 32, 432)
        make("mask_token", 1, 3, 1, 1)
    else:
        make.linear("head", 48, 5)
    given = PVT | {"mlp_ratios": [2, 2, 2, 2]}
    settings: dict[str, Any] = {"backbone": "pvt_v2_b2", "backbone_args": given, "keep_head": not pretrained}
    result = fastmim.convert(saved(tmp_path, make.state), out=tmp_path / "w.safetensors", **settings)
    assert result.method == ("FastMIM" if pretrained else "PVTv2")
    images = torch.randn(2, 3, 64, 64)
    expected = pvt_forward(make.state, images, prefix=prefix, heads=(1, 2, 2, 3))
    torch.testing.assert_close(features_of(result, images), expected, rtol=1e-4, atol=1e-5)
    if not pretrained:
        expected = F.linear(expected.mean((2, 3)), make.state["head.weight"], make.state["head.bias"])
        torch.testing.assert_close(logits_of(result, images), expected, rtol=1e-4, atol=1e-5)


CMT: dict[str, Any] = {"stem_width": 8, "embed_dims": [16, 24, 32, 48], "depths": [1, 1, 1, 1]}
CMT |= {"num_heads": [1, 1, 2, 2], "head_width": 40}


@pytest.mark.parametrize("pretrained", [True, False])
def test_cmt(tmp_path: Path, pretrained: bool) -> None:
    make, prefix, heads = Maker(), "encoder." if pretrained else "", (1, 1, 2, 2)
    make.cmt(prefix, stem=8, widths=(16, 24, 32, 48), heads=heads, side=64)
    features = cmt_forward(make.state, images := torch.randn(2, 3, 64, 64), prefix=prefix, heads=heads)
    if pretrained:
        make.decoder(48, 32, 432)
        make.norm("encoder.norm", 48)
        make("mask_token", 1, 3, 1, 1)
    else:
        make.convolution("_fc", 48, 40, 1)
        make.batch_norm("_bn", 40)
        make.linear("head", 40, 5)
    settings: dict[str, Any] = {"backbone": "cmt_s", "backbone_args": CMT, "keep_head": not pretrained}
    result = fastmim.convert(saved(tmp_path, make.state), out=tmp_path / "w.safetensors", **settings)
    assert (result.method, result.img_size) == ("FastMIM" if pretrained else "CMT", 64)
    torch.testing.assert_close(features_of(result, images), features, rtol=1e-4, atol=1e-5)
    if pretrained:
        normed = norm(make.state, "encoder.norm", features.movedim(1, -1), 1e-6).movedim(-1, 1)
        backbone = weights.open_weights(str(result.path)).load().eval()
        with torch.no_grad():
            features = backbone(images)
        torch.testing.assert_close(features, normed, rtol=1e-4, atol=1e-5)
        assert {name.partition(".")[0] for name in result.fresh} == {"projection"}
        assert "untrained  projection.* (7)" in result.describe()
    else:
        expected = F.silu(batch_norm(make.state, "_bn", convolve(make.state, "_fc", features))).mean((2, 3))
        expected = F.linear(expected, make.state["head.weight"], make.state["head.bias"])
        torch.testing.assert_close(logits_of(result, images), expected, rtol=1e-4, atol=1e-5)
        assert result.fresh == ("norm.weight", "norm.bias")


@pytest.mark.parametrize(
    ("name", "widths", "depths"), [("pvt_v2_b2", (64, 128, 320, 512), (3, 4, 6, 3)), ("cmt_s", 64, (3, 3, 16, 3))]
)
def test_hierarchical_models_are_found_without_being_named(name: str, widths: Any, depths: tuple[int, ...]) -> None:
    with torch.device("meta"):
        state = timm.create_model(name, num_classes=0, **({"img_size": 128} if name == "cmt_s" else {})).state_dict()
    model = foreign.identify(state, state, foreign.Layout("FastMIM"), name=None, arguments={})
    assert (model.name, model.img_size) == (name, 128 if name == "cmt_s" else 224)


# SimMIM's own files


def config_class(monkeypatch: pytest.MonkeyPatch) -> Any:
    """yacs' class as it pickles: a dict with a few attributes."""

    class CfgNode(dict):  # type: ignore[type-arg]
        def __init__(self, *items: Any) -> None:
            super().__init__(*items)
            self.__dict__.update({"__immutable__": True, "__deprecated_keys__": set(), "__new_allowed__": False})

    CfgNode.__module__, CfgNode.__qualname__ = "yacs.config", "CfgNode"
    module = types.ModuleType("yacs.config")
    module.CfgNode = CfgNode  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.config", module)
    return CfgNode


def test_a_yacs_config_is_data_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = config_class(monkeypatch)
    state = finetuned_vit(pooled=True)
    config = node({"MODEL": node({"TYPE": "vit", "VIT": node({"DEPTH": 2})}), "DATA": node({"IMG_SIZE": 64})})
    file = saved(tmp_path, state, optimizer={"state": {}}, max_accuracy=0.0, epoch=99, config=config)
    odd = tmp_path / "odd.pth"
    torch.save({"model": state, "config": node({"DATA": node({"PATH": Path("a")})})}, odd)
    runs = tmp_path / "runs.pth"
    torch.save({"model": state, "config": node({"DATA": Runs()})}, runs)
    for name in ("yacs", "yacs.config"):
        monkeypatch.delitem(sys.modules, name)  # not needed, and not imported
    settings: dict[str, Any] = {"out": tmp_path / "w.safetensors", "backbone": "vit_tiny_patch16_224"}
    settings["backbone_args"] = SMALL_VIT
    result = fastmim.convert(file, **settings)
    assert result.left == ("optimizer", "max_accuracy", "epoch", "config") and "yacs" not in sys.modules
    monkeypatch.chdir(tmp_path)
    for other, held in ((odd, "pathlib.PosixPath"), (runs, "exec")):
        with pytest.raises(
            RequestError, match=f"a pickle that holds {held}; expected .*yacs.config.CfgNode, .*nothing"
        ):
            fastmim.convert(other, **(settings | {"out": tmp_path / "other.safetensors"}))
    assert not Path("it_ran").exists()
    with pytest.raises(pickle.UnpicklingError):  # forbidden to every other torch.load
        torch.load(file, weights_only=True)


class Runs:
    def __reduce__(self) -> Any:
        return (exec, ("import pathlib; pathlib.Path('it_ran').touch()",))


def test_simmims_fine_tuned_vit_is_found(tmp_path: Path) -> None:
    """A BEiT with a table of position biases in each block."""
    with torch.device("meta"):
        shapes = timm.create_model("beit_base_patch16_224", num_classes=5, depth=12).state_dict()
    layout = foreign.recognise(shapes)
    tensors, _ = foreign.split(shapes, layout)
    model = foreign.identify(tensors, shapes, layout, name=None, arguments={})
    assert (model.name, model.arguments, model.img_size) == ("beit_base_patch16_224", {}, 224)
    assert model.mean == (0.485, 0.456, 0.406)


# Bad input


def test_there_must_be_a_head_to_keep(tmp_path: Path) -> None:
    make = Maker()
    make.vit(width=48, depth=2, grid=4)
    settings: dict[str, Any] = {"out": tmp_path / "w.safetensors", "backbone": "vit_tiny_patch16_224"}
    settings |= {"backbone_args": SMALL_VIT, "keep_head": True}
    with pytest.raises(
        RequestError, match=r"keep_head is on, and .*c.pth has no head.weight of vit_tiny.*no classifier"
    ):
        fastmim.convert(saved(tmp_path, make.state), **settings)
    for head in (torch.zeros(0, 48), torch.zeros(()), torch.zeros(()).expand(10**11, 48)):
        state = finetuned_vit(pooled=False) | {"head.weight": head}
        with pytest.raises(RequestError, match=r"for 1 to 65536 classes, but head.weight, head.bias; expected"):
            fastmim.convert(saved(tmp_path, state), **settings)
    state = finetuned_vit(pooled=False) | {"head.bias": torch.zeros(4)}
    with pytest.raises(RequestError, match=r"other shapes head.bias \(4,\) instead of \(5,\)"):
        fastmim.convert(saved(tmp_path, state), **settings)


def layouts() -> dict[str, tuple[State, dict[str, Any]]]:
    """A small checkpoint of each layout and the settings that convert it."""
    made = {}
    for layout in ("FastMIM ViT", "MAE", "encoder", "fine-tuned"):
        make = Maker()
        make.vit(width=48, depth=2, grid=4)
        if layout in ("FastMIM ViT", "MAE"):
            make.decoder(48, 32, 108)
            make("mask_token", *((1, 1, 32) if layout == "MAE" else (1, 3, 1, 1)))
        if layout == "MAE":
            make("decoder_pos_embed", 1, 17, 32)
        state = finetuned_vit(pooled=True) if layout == "fine-tuned" else make.state
        made[layout] = (state, {"backbone": "vit_tiny_patch16_224", "backbone_args": SMALL_VIT})
    for layout, prefix in (("FastMIM Swin", "encoder."), ("SimMIM Swin", "encoder."), ("Swin", "")):
        make = Maker()
        make.swin(prefix, width=32, depths=(2, 2), heads=(2, 4), window=2, side=32)
        if prefix:
            token = ("mask_token", 1, 3, 1, 1) if layout == "FastMIM Swin" else ("encoder.mask_token", 1, 1, 32)
            make(*token)
        given = {"embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4]}
        made[layout] = (make.state, {"backbone": "swin_tiny_patch4_window7_224", "backbone_args": given})
    make = Maker()
    make.simmim_vit(64, 2)
    given = {"embed_dim": 64, "depth": 2, "num_heads": 4}
    made["SimMIM ViT"] = (make.state, {"backbone": "beit_base_patch16_224", "backbone_args": given})
    make = Maker()
    make.pvt("encoder.", widths=(16, 32, 32, 48), depth=1, reductions=(8, 4, 2, 1))
    make("mask_token", 1, 3, 1, 1)
    made["FastMIM PVTv2"] = (make.state, {"backbone": "pvt_v2_b2", "backbone_args": PVT | {"mlp_ratios": [2] * 4}})
    make = Maker()
    make.cmt("encoder.", stem=8, widths=(16, 24, 32, 48), heads=(1, 1, 2, 2), side=32)
    make.norm("encoder.norm", 48)
    make("mask_token", 1, 3, 1, 1)
    made["FastMIM CMT"] = (make.state, {"backbone": "cmt_s", "backbone_args": CMT})
    make = Maker()
    make.pvt("", widths=(16, 32, 32, 48), depth=1, reductions=(8, 4, 2, 1))
    make.linear("head", 48, 5)
    made["fine-tuned PVTv2"] = (make.state, made["FastMIM PVTv2"][1])
    make = Maker()
    make.cmt("", stem=8, widths=(16, 24, 32, 48), heads=(1, 1, 2, 2), side=32)
    make.convolution("_fc", 48, 40, 1)
    make.batch_norm("_bn", 40)
    make.linear("head", 40, 5)
    made["fine-tuned CMT"] = (make.state, made["FastMIM CMT"][1])
    given = {"embed_dim": 64, "depth": 2, "num_heads": 4}
    beit = timm.create_model("beit_base_patch16_224", img_size=32, num_classes=5, **given)
    made["fine-tuned SimMIM ViT"] = (beit.state_dict(), {"backbone": "beit_base_patch16_224", "backbone_args": given})
    return made


LAYOUTS = layouts()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_tensor_that_is_missing_renamed_or_of_another_shape_is_named(tmp_path: Path, layout: str) -> None:
    state, settings = LAYOUTS[layout]
    out = tmp_path / "w.safetensors"
    backbone = [name for name in state if not name.startswith("decoder")]
    victim = next(name for name in reversed(backbone) if name.endswith("attn.proj.weight"))
    without = {name: tensor for name, tensor in state.items() if name != victim}
    last = victim.rpartition(".")[0].rpartition(".")[2] + ".weight"
    for changed, message in (
        (without, rf"missing keys [\w.]*{last};"),
        (without | {f"{victim}s": state[victim]}, rf"unknown keys [\w.]*{last}s; missing keys [\w.]*{last};"),
        (state | {victim: state[victim][:-1]}, rf"other shapes [\w.]*{last} "),
    ):
        with pytest.raises(RequestError, match=message) as refusal:
            fastmim.convert(saved(tmp_path, changed), out=out, **settings)
        assert "\n" not in str(refusal.value) and not out.exists()
    first = next(name for name in backbone if state[name].ndim == 4 and "mask_token" not in name)  # the patch embedding
    without = {name: tensor for name, tensor in state.items() if name != first}
    with pytest.raises(RequestError, match=r"missing keys [\w., ]*weight[;,]") as refusal:
        fastmim.convert(saved(tmp_path, without), out=out, **settings)
    assert "\n" not in str(refusal.value) and not out.exists()


def test_heads_that_do_not_divide_the_width(tmp_path: Path) -> None:
    state, settings = LAYOUTS["FastMIM ViT"]
    given = settings | {"backbone_args": SMALL_VIT | {"num_heads": 5}}
    with pytest.raises(RequestError, match=r"num_heads': 5.*expected arguments that timm's vit_tiny_patch16_224 takes"):
        fastmim.convert(saved(tmp_path, state), out=tmp_path / "w.safetensors", **given)


def test_the_command_takes_dashes_and_keeps_the_head(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = saved(tmp_path, finetuned_vit(pooled=True)), tmp_path / "w.safetensors"
    words = ["convert", str(file), "--out", str(out), "--backbone", "vit_tiny_patch16_224", "--keep-head"]
    words += ["--backbone-args.embed-dim", "48", "--backbone-args.depth", "2", "--backbone-args.num-heads", "3"]
    with pytest.raises(SystemExit, match="0"):
        cli.main([*words, "--backbone-args.global-pool", "avg"])
    assert "classifier kept, 5 classes" in capsys.readouterr().out
