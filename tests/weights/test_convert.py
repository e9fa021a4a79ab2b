"""Conversion of other projects' checkpoints (`foreign_models`): the original's features, or a refusal."""

from __future__ import annotations

import argparse
import collections
import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import fastmim
from fastmim import Backbone, RequestError, cli, weights
from fastmim.weights import foreign
from foreign_models import (
    Maker,
    State,
    features_of,
    simmim_vit_forward,
    swin_forward,
    vit_forward,
)
from tuning import finetune

# The layouts


def test_fastmim_vit_keeps_its_six_heads(tmp_path: Path) -> None:
    make = Maker()
    make.vit(width=192, depth=2, grid=4)
    make.decoder(192, 64, 108)
    make("mask_token", 1, 3, 1, 1)
    file, out = tmp_path / "checkpoint-799.pth", tmp_path / "w.safetensors"
    arguments = argparse.Namespace(model="mim_vit_base", mask_ratio=0.75)
    torch.save({"model": make.state, "optimizer": {"state": {}}, "epoch": 799, "args": arguments}, file)
    result = fastmim.convert(file, out=out, backbone="vit_tiny_patch16_224", backbone_args={"depth": 2})
    assert (result.method, result.arguments, result.img_size) == ("FastMIM", {"num_heads": 6, "depth": 2}, 64)
    assert result.left == ("optimizer", "epoch", "args")
    assert {name.partition(".")[0] for name in result.kept} == {
        "mask_token", "decoder_embed", "decoder_blocks", "decoder_norm", "decoder_pred",
    }  # fmt: skip
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(features_of(result, images), vit_forward(make.state, images, 6), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(features_of(result, images), vit_forward(make.state, images, 3), atol=1e-2)
    assert "the file says 6; for the published start of fine-tuning, convert with --backbone-args.num" in result.note
    with pytest.raises(RequestError, match="num_heads 6, not by default"):
        fastmim.load_backbone(out, backbone_args={"depth": 2})
    weights.load_into(Backbone("vit_tiny_patch16_224", img_size=96, args={"num_heads": 6, "depth": 2}), out)


def test_fastmims_vit_can_be_fine_tuned_with_twice_as_many_heads_as_published(tmp_path: Path, labelled: Path) -> None:
    make = Maker()
    make.vit(width=48, depth=2, grid=4)
    make.decoder(48, 32, 108)
    make("mask_token", 1, 3, 1, 1)
    torch.save({"model": make.state}, tmp_path / "c.pth")
    given = {"embed_dim": 48, "depth": 2, "num_heads": 12}
    settings = {"out": tmp_path / "w.safetensors", "backbone": "vit_tiny_patch16_224", "backbone_args": given}
    result = fastmim.convert(tmp_path / "c.pth", **settings)
    assert result.note.endswith("the file says 12, as given")
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(features_of(result, images), vit_forward(make.state, images, 12), rtol=1e-4, atol=1e-5)
    tuned = finetune(tmp_path / "ft", labelled, weights=str(result.path), steps=1)
    assert weights.read(tuned.weights)[1]["arguments"]["num_heads"] == 12


@pytest.mark.parametrize("with_decoder", [True, False])
def test_mae_is_found_without_being_named(tmp_path: Path, with_decoder: bool) -> None:
    make = Maker()
    make.vit(width=192, depth=12, grid=14)
    if with_decoder:
        make.decoder(192, 64, 768)
        make("mask_token", 1, 1, 64)
        make("decoder_pos_embed", 1, 197, 64)
    torch.save({"model": make.state}, tmp_path / "mae.pth")
    result = fastmim.convert(tmp_path / "mae.pth", out=tmp_path / "w.safetensors")
    assert (result.backbone, result.arguments, result.img_size) == ("vit_tiny_patch16_224", {}, 224)
    assert result.mean == (0.485, 0.456, 0.406) and bool(result.dropped) == with_decoder and not result.kept
    images = torch.randn(1, 3, 224, 224)
    expected = vit_forward(make.state, images, 3)
    torch.testing.assert_close(features_of(result, images), expected, rtol=1e-4, atol=1e-4)
    timm.create_model("vit_tiny_patch16_224", checkpoint_path=str(result.path))


@pytest.mark.parametrize("method", ["FastMIM", "SimMIM"])
def test_swin_gives_the_features_of_the_original(tmp_path: Path, method: str) -> None:
    make = Maker()
    heads, window, side = (2, 4, 8), 2, 32
    make.swin("encoder.", width=32, depths=(2, 2, 2), heads=heads, window=window, side=side)
    if method == "FastMIM":
        make.decoder(128, 64, 108)
        make("mask_token", 1, 3, 1, 1)
    else:
        make("encoder.mask_token", 1, 1, 32)
        make("decoder.0.weight", 3 * 16 * 16, 128, 1, 1)
        make("decoder.0.bias", 3 * 16 * 16)
    torch.save({"model": {f"module.{name}": tensor for name, tensor in make.state.items()}}, tmp_path / "c.pth")
    given = {"embed_dim": 32, "depths": [2, 2, 2], "num_heads": list(heads)}
    result = fastmim.convert(
        tmp_path / "c.pth", out=tmp_path / "w.safetensors", backbone="swin_tiny_patch4_window7_224", backbone_args=given
    )
    assert (result.method, result.img_size) == (method, side) and result.arguments == given | {"window_size": window}
    images = torch.randn(2, 3, side, side)
    expected = swin_forward(make.state, images, prefix="encoder.", heads=heads, window=window)
    torch.testing.assert_close(features_of(result, images), expected, rtol=1e-4, atol=1e-5)
    weights.load_into(Backbone("swin_tiny_patch4_window7_224", img_size=side, args=result.arguments), result.path)


def test_simmim_vit_gives_the_features_of_the_original(tmp_path: Path) -> None:
    make, width, grid = Maker(), 64, 3
    make.simmim_vit(width, grid)
    torch.save({"model": make.state}, tmp_path / "c.pth")
    given = {"embed_dim": width, "depth": 2, "num_heads": 4}
    result = fastmim.convert(
        tmp_path / "c.pth", out=tmp_path / "w.safetensors", backbone="beit_base_patch16_224", backbone_args=given
    )
    assert result.img_size == grid * 16 and result.arguments["use_shared_rel_pos_bias"]
    assert result.mean == (0.485, 0.456, 0.406)  # timm's BEiT has 0.5
    images = torch.randn(2, 3, 48, 48)
    expected = simmim_vit_forward(make.state, images, 4)
    torch.testing.assert_close(features_of(result, images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("layout", ["FastMIM", "MAE", "encoder", "fine-tuned"])
def test_imagenets_normalisation_whoever_names_the_backbone(tmp_path: Path, layout: str, named: bool) -> None:
    """timm's own weights of this name, which these are not, have mean and deviation 0.5."""
    make = Maker()
    make.vit(width=192, depth=2 if named else 12, grid=8)
    if layout == "fine-tuned":
        make.linear("head", 192, 10)
    elif layout != "encoder":
        make.decoder(192, 64, 108)
        make("mask_token", *((1, 3, 1, 1) if layout == "FastMIM" else (1, 1, 64)))
    if layout == "MAE":
        make("decoder_pos_embed", 1, 65, 64)
    torch.save({"model": make.state}, tmp_path / "c.pth")
    given = {"backbone": "vit_tiny_patch16_224", "backbone_args": {"depth": 2}} if named else {}
    result = fastmim.convert(tmp_path / "c.pth", out=tmp_path / "w.safetensors", **given)
    assert (result.mean, result.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert weights.open_weights(str(result.path)).mean == result.mean
    # Names that timm uses too say nothing of the images; the user does, by a tag.
    assert ("does not say how" in result.note) == (layout in ("encoder", "fine-tuned"))
    if layout == "fine-tuned" and named:
        tagged = {"backbone": "vit_tiny_patch16_224.augreg_in21k_ft_in1k", "overwrite": True}
        result = fastmim.convert(tmp_path / "c.pth", out=tmp_path / "w.safetensors", **(given | tagged))
        assert (result.mean, result.note) == ((0.5, 0.5, 0.5), "")


def meta(name: str, **arguments: Any) -> State:
    """The tensors of a timm model on the meta device."""
    with torch.device("meta"):
        return timm.create_model(name, num_classes=0, **arguments).state_dict()


@pytest.mark.parametrize(
    "published", ["mae-b", "mae-l", "mae-h", "fastmim-vit-b", "fastmim-swin-b", "simmim-swin-b", "simmim-vit-b"]
)
def test_the_published_checkpoints_are_recognised(published: str) -> None:
    method, _, network = published.partition("-")
    pixels = torch.zeros(1, 3, 1, 1)
    size = 128 if method == "fastmim" else 192 if published == "simmim-swin-b" else 224
    if "swin" in network:
        window = size // 32
        state = meta("swin_base_patch4_window7_224", img_size=size, window_size=window)
        state = {f"encoder.{name}": tensor for name, tensor in state.items()}
        for stage in (1, 2, 3):  # the last layer of a stage in the original, the first of the next in timm
            for part in ("norm.weight", "norm.bias", "reduction.weight"):
                tensor = state.pop(f"encoder.layers.{stage}.downsample.{part}")
                state[f"encoder.layers.{stage - 1}.downsample.{part}"] = tensor
        state["encoder.layers.0.blocks.1.attn_mask"] = torch.zeros((size // 4 // window) ** 2, window**2, window**2)
        expected = ("swin_base_patch4_window7_224", {"window_size": window}, size)
        state |= {"mask_token": pixels} if method == "fastmim" else {"encoder.mask_token": torch.zeros(1, 1, 128)}
    elif published == "simmim-vit-b":
        shared = {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True, "use_fc_norm": False}
        state = {f"encoder.{name}": tensor for name, tensor in meta("beit_base_patch16_224", **shared).items()}
        state["encoder.mask_token"] = torch.zeros(1, 1, 768)
        expected = ("beit_base_patch16_224", shared, 224)
    else:
        full = {"b": "vit_base_patch16_224", "l": "vit_large_patch16_224", "h": "vit_huge_patch14_224"}[network[-1]]
        state = meta(full, img_size=size)
        expected = (full, {"num_heads": 6} if method == "fastmim" else {}, size)
        state |= {"mask_token": pixels} if method == "fastmim" else {}
    layout = foreign.recognise(state)
    tensors, _ = foreign.split(state, layout)
    model = foreign.identify(tensors, state, layout, name=None, arguments={})
    assert (model.name, model.arguments, model.img_size) == expected
    at_size = {"img_size": size} if "patch" in model.name else {}
    named = meta(model.name, **at_size, **model.arguments)
    assert {name: tensor.shape for name, tensor in tensors.items()} == {n: t.shape for n, t in named.items()}


def test_any_timm_state_dict_with_its_own_normalisation(tmp_path: Path) -> None:
    model = timm.create_model("pvt_v2_b0")
    torch.save(model.state_dict(), tmp_path / "pvt.pth")
    result = fastmim.convert(tmp_path / "pvt.pth", out=tmp_path / "w.safetensors", backbone="pvt_v2_b0")
    assert result.method == "timm" and result.dropped == ("head.weight", "head.bias")
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(features_of(result, images), model.eval().forward_features(images))

    model = timm.create_model("resnet18").half()  # batch norm's counters are integers
    torch.save({"state_dict": model.state_dict()}, tmp_path / "r.pth")
    result = fastmim.convert(tmp_path / "r.pth", out=tmp_path / "r.safetensors", backbone="resnet18.a1_in1k")
    assert result.mean == (0.485, 0.456, 0.406)
    assert all(t.dtype in (torch.float32, torch.int64) for t in weights.read(result.path)[0].values())


# Bad input


def small_vit(tmp_path: Path, **more: Any) -> dict[str, Any]:
    """Arguments of a valid conversion; `more` adds tensors to the checkpoint, or removes them (None)."""
    make = Maker()
    make.vit(width=48, depth=2, grid=4)
    state = {name: tensor for name, tensor in (make.state | more).items() if tensor is not None}
    torch.save({"model": state}, tmp_path / "c.pth")
    return {
        "file": tmp_path / "c.pth",
        "out": tmp_path / "w.safetensors",
        "backbone": "vit_tiny_patch16_224",
        "backbone_args": {"embed_dim": 48, "depth": 2},
    }


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"adapter.weight": torch.zeros(1), "adapter.bias": torch.zeros(1)},
            "unknown keys adapter.weight, adapter.bias;",
        ),
        ({"norm.weight": None}, r"missing keys norm\.weight;"),
        ({"norm.weight": torch.zeros(7)}, r"other shapes norm\.weight \(7,\) instead of \(48,\);"),
        ({f"extra.{i}": torch.zeros(1) for i in range(12)}, r"extra\.7 and 4 more;"),
        (
            {"fc_norm.weight": torch.zeros(48), "norm.weight": None},
            "unknown keys norm.bias; missing keys fc_norm.bias",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=rf"is not vit_tiny_patch16_224 with .*{message}") as refusal:
        fastmim.convert(**small_vit(tmp_path, **more))
    assert "\n" not in str(refusal.value) and [p.name for p in tmp_path.iterdir()] == ["c.pth"]


class RunsCode:
    def __reduce__(self) -> Any:
        return (exec, ("import pathlib; pathlib.Path('it_ran').touch()",))


def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = small_vit(tmp_path)
    torch.save({"model": {}, "args": RunsCode()}, "c.pth")
    with pytest.raises(RequestError, match=r"a pickle that holds exec; .*nothing was run"):
        fastmim.convert(**settings)
    Path("c.pth").write_bytes(pickle.dumps(RunsCode()))  # a bare pickle, not PyTorch's archive
    with pytest.raises(RequestError, match=r"exec|damaged or no PyTorch checkpoint"):
        fastmim.convert(**settings)
    Path("c.pth").write_bytes(pickle.dumps({"model": argparse.Namespace(inner=RunsCode())}, protocol=2))
    with pytest.raises(RequestError, match=r"exec|damaged or no PyTorch checkpoint"):
        fastmim.convert(**settings)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.pth"]


def test_no_class_but_namespace_is_loaded(tmp_path: Path) -> None:
    settings = small_vit(tmp_path)
    state = torch.load(settings["file"])["model"]
    torch.save({"model": collections.OrderedDict(state), "args": argparse.Namespace(lr=1e-3)}, settings["file"])
    assert fastmim.convert(**settings).left == ("args",)
    torch.save({"model": state, "config": Path("a")}, settings["file"])
    with pytest.raises(RequestError, match=r"holds pathlib\.PosixPath; expected tensors, plain values, argparse"):
        fastmim.convert(**(settings | {"overwrite": True}))
    # The conversion leaves Namespace forbidden for every other torch.load.
    torch.save(argparse.Namespace(), settings["file"])
    with pytest.raises(pickle.UnpicklingError):
        torch.load(settings["file"], weights_only=True)


def test_other_files_are_refused(tmp_path: Path) -> None:
    settings = small_vit(tmp_path)
    file = settings["file"]
    whole = file.read_bytes()
    for content in (b"", b"not a checkpoint", whole[: len(whole) // 2]):
        file.write_bytes(content)
        with pytest.raises(RequestError, match=r"damaged or no PyTorch checkpoint.*download it again"):
            fastmim.convert(**settings)
    torch.save({"epoch": 3}, file)
    with pytest.raises(RequestError, match=r"which holds epoch; expected tensors by name"):
        fastmim.convert(**settings)
    torch.save([torch.zeros(1)], file)
    with pytest.raises(RequestError, match=r"which holds list; expected tensors by name"):
        fastmim.convert(**settings)
    with pytest.raises(RequestError, match=r"file is .*nothing\.pth; expected a checkpoint"):
        fastmim.convert(tmp_path / "nothing.pth", out=settings["out"])
    with pytest.raises(RequestError, match=r"expected a file ending in \.safetensors"):
        fastmim.convert(file, out=tmp_path / "w.pth")
    (tmp_path / "cut.safetensors").write_bytes(b"x" * 20)
    with pytest.raises(RequestError, match=r"which is damaged: "):
        fastmim.convert(tmp_path / "cut.safetensors", out=settings["out"])
    torch.save({"model": timm.create_model("convnext_atto").state_dict()}, file)
    with pytest.raises(
        RequestError, match=r"is no ViT, Swin, PVTv2 or CMT of a known size; expected its timm name: --backbone NAME"
    ):
        fastmim.convert(file, out=settings["out"])


def test_odd_pickles_and_tensors_are_refused(tmp_path: Path) -> None:
    """What torch's unpickler raises, names that are no text, tensors without dimensions, numbers or memory."""
    settings = small_vit(tmp_path)
    file, state = settings["file"], torch.load(settings["file"])["model"]
    for program in (
        b"\x80\x020.",
        b"\x80\x02.",
        b"\x80\x02(\x8c\x01au.",
        b"\x80\x02K\x01K\x02a.",
        b"\x80\x02" + b"(l" * 5000,
    ):
        file.write_bytes(program)
        with pytest.raises(RequestError, match="is damaged or no PyTorch checkpoint.*: download it again"):
            fastmim.convert(**settings)
    for odd in (
        {7: torch.zeros(1)},
        {"a": torch.zeros(1).to_sparse()},
        {"a": torch.zeros(1, device="meta")},
        {"a": torch.zeros(1, dtype=torch.complex64)},
    ):
        torch.save({"model": state | odd}, file)
        with pytest.raises(RequestError, match="which holds model; expected tensors by name"):
            fastmim.convert(**settings)
    for name in ("patch_embed.proj.weight", "pos_embed"):
        torch.save({"model": state | {name: torch.tensor(1.0)}}, file)
        with pytest.raises(RequestError, match="shapes of no known model|which is not vit_tiny.*other shapes"):
            fastmim.convert(**settings)
    huge = state | {"blocks.0.norm1.bias": torch.zeros((), dtype=torch.float16).expand(10**12)}
    torch.save({"model": huge}, file)
    with pytest.raises(RequestError, match="other shapes blocks.0.norm1.bias"):
        fastmim.convert(**settings)
    too_long = "x" * 300 + ".safetensors"
    with pytest.raises(RequestError, match="file is xxx.*; expected a checkpoint"):
        fastmim.convert(**(settings | {"file": too_long}))
    torch.save({"model": state}, file)
    with pytest.raises(RequestError, match="out is xxx.*: File name too long; expected a path that can be written"):
        fastmim.convert(**(settings | {"out": too_long}))


def test_an_existing_file_is_replaced_only_with_overwrite(tmp_path: Path) -> None:
    settings = small_vit(tmp_path)
    result = fastmim.convert(**settings)
    with pytest.raises(RequestError, match=r"which exists; expected a path that is free: take another, or --overwrite"):
        fastmim.convert(**settings)
    fastmim.convert(**settings, overwrite=True)
    with pytest.raises(RequestError, match="a fastmim weights file already: use it as it is"):
        fastmim.convert(result.path, out=tmp_path / "again.safetensors")
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match=r"expected a path that can be written"):
        fastmim.convert(**(settings | {"out": tmp_path / "file" / "w.safetensors"}))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = small_vit(tmp_path)
    words = ["convert", str(settings["file"]), "--out", str(settings["out"]), "--backbone", settings["backbone"]]
    words += ["--backbone-args.embed_dim", "48", "--backbone-args.depth"]
    with pytest.raises(SystemExit, match="0"):
        cli.main([*words, "2"])
    said = capsys.readouterr().out
    assert "trained at 64 px" in said and "equal to the bit" in said
    with pytest.raises(SystemExit, match="2"):
        cli.main([*words, "3", "--overwrite"])
    refused = capsys.readouterr().err
    assert refused.count("\n") == 1 and "missing keys blocks.2" in refused
