"""The official pre-trainings go on from their own checkpoints: encoder, decoder and mask token give their losses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

import fastmim
from conftest import SMALL
from fastmim import RequestError, config
from fastmim.method.build import build_model, start_from
from fastmim.method.mim import MIM
from fastmim.method.settings import PretrainConfig
from fastmim.randomness import image_keys
from fastmim.weights.convert import Conversion
from foreign_models import Maker, State, cmt_forward, norm, pvt_forward, swin_forward
from parity import reference
from parity.reference import DECODER_DEPTH, DECODER_WIDTH, GRID, PATCH, SIZE

VIT: dict[str, Any] = {
    "backbone": "vit_base_patch16_224",
    "backbone_args": {"patch_size": PATCH, "embed_dim": reference.WIDTH, "depth": 2, "num_heads": reference.HEADS},
}
SWIN: dict[str, Any] = {
    "backbone": "swin_tiny_patch4_window7_224",
    "backbone_args": {"embed_dim": 32, "depths": [2, 2, 2], "num_heads": [1, 2, 4]},
}
PVT: dict[str, Any] = {
    "backbone": "pvt_v2_b2",
    "backbone_args": {
        "embed_dims": [16, 32, 32, 48], "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 3], "mlp_ratios": [2, 2, 2, 2],
    },
}  # fmt: skip
CMT: dict[str, Any] = {
    "backbone": "cmt_s",
    "backbone_args": {
        "stem_width": 8, "embed_dims": [16, 24, 32, 48], "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2],
        "head_width": 40,
    },
}  # fmt: skip
OURS = {"decoder": f"{DECODER_WIDTH}x{DECODER_DEPTH}", "block": PATCH}


def converted(tmp_path: Path, state: State, network: dict[str, Any]) -> Conversion:
    torch.save({"model": state}, tmp_path / "official.pth")
    return fastmim.convert(tmp_path / "official.pth", out=tmp_path / "w.safetensors", overwrite=True, **network)


def started(conversion: Conversion, **settings: Any) -> tuple[MIM, str]:
    """The model of a pre-training with --init, before its first step, and what the console says of its start."""
    given = {"backbone": conversion.backbone, "backbone_args": conversion.arguments, "img_size": conversion.img_size}
    given |= {"data": "samples", "out": "run", "init": str(conversion.path)} | settings
    whole = config.build(PretrainConfig, given)
    model = build_model(whole)
    return model.eval(), start_from(model, str(conversion.path), target=whole.target)


def run(model: MIM, size: int) -> tuple[Tensor, dict[str, Tensor]]:
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return images, model(images, image_keys(0, 0, torch.arange(2)))


def check(output: dict[str, Tensor], expected: Tensor, target: Tensor) -> None:
    """Compare the loss, and the predictions as sets: the order of their channels is not the same.

    Args:
        output: The model's.
        expected: (B, N, K) float64 predictions in the official order.
        target: (B, N, K) in the same order.
    """
    found = output["prediction"].flatten(2).transpose(1, 2).double()
    assert (found.norm() / expected.norm() - 1).abs() < 1e-5
    hidden = output["mask"].flatten(1)
    loss = (expected - target).square()[hidden].mean()
    torch.testing.assert_close(output["loss"].double(), loss, rtol=1e-5, atol=0)


def hog(output: dict[str, Tensor]) -> Tensor:
    return output["target"].flatten(2).transpose(1, 2).double()


def patches(images: Tensor) -> Tensor:
    """(B, N, K), standardised, in the order of MAE and FastMIM: row, column, colour."""
    cut = images.double().unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)  # (B, 3, GRID, GRID, PATCH, PATCH)
    target = cut.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
    return (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()


@pytest.mark.parametrize("target", ["hog", "pixels"])
def test_fastmim_vit(tmp_path: Path, target: str) -> None:
    channels = 27 if target == "hog" else 3 * PATCH**2
    weights = reference.official_checkpoint(out_channels=channels, mask_token=(1, 3, 1, 1))
    conversion = converted(tmp_path, weights, VIT)
    assert conversion.decoder == f"--decoder 64x2 --target {target}" and not conversion.dropped
    model, line = started(conversion, **OURS, target=target)
    assert line == f"encoder, decoder, mask token of {conversion.path}"
    images, output = run(model, SIZE)
    expected = reference.fastmim(images, output["mask"], weights)
    check(output, expected, hog(output) if target == "hog" else patches(images))


def mae_checkpoint() -> State:
    weights = reference.official_checkpoint(out_channels=3 * PATCH**2, mask_token=(1, 1, DECODER_WIDTH))
    positions = torch.cat([torch.zeros(1, DECODER_WIDTH), reference.sincos(DECODER_WIDTH).float()])
    return weights | {"decoder_pos_embed": positions[None]}


def test_mae(tmp_path: Path) -> None:
    weights = mae_checkpoint()
    conversion = converted(tmp_path, weights, VIT)
    assert conversion.decoder == "--decoder 64x2 --target pixels --masking drop"
    assert conversion.dropped == ("decoder_pos_embed",) and "img-size 32 --decoder 64x2" in conversion.describe()
    assert f"beside it  {tmp_path / 'w.pretraining.safetensors'}: mask_token, decoder_" in conversion.describe()
    model, line = started(conversion, **OURS, target="pixels", masking="drop")
    assert line == f"encoder, decoder of {conversion.path}"
    images, output = run(model, SIZE)
    check(output, reference.mae(images, output["mask"], weights), patches(images))


def painted(images: Tensor, mask: Tensor, token: Tensor) -> Tensor:
    side = images.shape[-1] // mask.shape[-1]
    hidden = mask.repeat_interleave(side, 1).repeat_interleave(side, 2)[:, None]
    return torch.where(hidden, token.reshape(1, 3, 1, 1), images).double()


def in_double(state: State) -> State:
    return {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


@pytest.mark.parametrize("family", ["swin", "pvt", "cmt"])
def test_hierarchical_fastmim(tmp_path: Path, family: str) -> None:
    """Decoders of 2 x 2 and of 4 x 4 cells of HOG for each position."""
    make = Maker()
    if family == "swin":
        network, width, outputs, size = SWIN, 128, 4 * 27, 32
        make.swin("encoder.", width=32, depths=(2, 2, 2), heads=(1, 2, 4), window=2, side=32)
    else:
        network, width, outputs, size = (PVT if family == "pvt" else CMT), 48, 16 * 27, 64
    if family == "pvt":
        make.pvt("encoder.", widths=(16, 32, 32, 48), depth=1, reductions=(8, 4, 2, 1))
    if family == "cmt":
        make.cmt("encoder.", stem=8, widths=(16, 24, 32, 48), heads=(1, 1, 2, 2), side=64)
        make.norm("encoder.norm", 48)
    make.decoder(width, 64, outputs)
    make("mask_token", 1, 3, 1, 1)
    model, line = started(conversion := converted(tmp_path, make.state, network), decoder="64x1", img_size=size)
    assert line == f"encoder, decoder, mask token of {conversion.path}"
    images, output = run(model, size)
    images, state = painted(images, output["mask"], make.state["mask_token"]), in_double(make.state)
    if family == "swin":
        features = swin_forward(state, images, prefix="encoder.", heads=(1, 2, 4), window=2).movedim(-1, 1)
    elif family == "pvt":
        features = pvt_forward(state, images, prefix="encoder.", heads=(1, 2, 2, 3))
    else:
        features = cmt_forward(state, images, prefix="encoder.", heads=(1, 1, 2, 2))
        features = norm(state, "encoder.norm", features.movedim(1, -1), 1e-6).movedim(-1, 1)
    check(output, reference.predict(features, make.state), hog(output))


def test_simmim_keeps_its_decoder_and_not_its_mask_token(tmp_path: Path) -> None:
    """Its mask token has the width of the embedded patches, which ours are not replaced in."""
    make = Maker()
    make.swin("encoder.", width=32, depths=(2, 2, 2), heads=(1, 2, 4), window=2, side=32)
    make("encoder.mask_token", 1, 1, 32)
    make("decoder.0.weight", 3 * 16**2, 128, 1, 1)
    make("decoder.0.bias", 3 * 16**2)
    conversion = converted(tmp_path, make.state, SWIN)
    assert conversion.decoder == "--decoder linear --target rgb --loss l1"
    assert "mask token replaces embedded patches and ours pixels, so that it is not kept" in conversion.describe()
    model, line = started(conversion, decoder="linear", target="rgb", loss="l1")
    assert line.startswith(f"encoder, decoder of {conversion.path}; mask token untrained (")
    assert line.endswith("w.pretraining.safetensors has none)") and model.mask_token is not None
    images, output = run(model, 32)
    state = in_double(make.state)
    seen = painted(images, output["mask"], model.mask_token.detach())
    features = swin_forward(state, seen, prefix="encoder.", heads=(1, 2, 4), window=2).movedim(-1, 1)
    predicted = F.pixel_shuffle(F.conv2d(features, state["decoder.0.weight"], state["decoder.0.bias"]), 16)
    hidden = output["mask"].repeat_interleave(16, 1).repeat_interleave(16, 2)[:, None]
    loss = ((predicted - images).abs() * hidden).sum() / hidden.sum() / 3
    torch.testing.assert_close(output["loss"].double(), loss, rtol=1e-5, atol=0)


# What does not fit


def test_a_decoder_that_does_not_fit_is_named_and_untrained(tmp_path: Path) -> None:
    weights = reference.official_checkpoint(out_channels=27, mask_token=(1, 3, 1, 1))
    conversion = converted(tmp_path, weights, VIT)
    for settings, said in (
        ({"decoder": "64x1"}, r"decoder untrained \(unknown keys decoder.blocks.1.attn.proj.bias, .* and 10 more\)"),
        ({"decoder": "32x2"}, r"other shapes decoder.embed.weight \(64, 48\) instead of \(32, 48\)"),
        ({"target": "pixels"}, r"decoder untrained \(it has learned hog, not pixels\)"),
        ({"masking": "drop"}, r"decoder untrained \(missing keys decoder.mask_token\)"),
    ):
        model, line = started(conversion, **(OURS | settings))
        assert re.search(said, line), line
        assert ("mask token" in line.partition(" of ")[0]) == ("masking" not in settings)
        torch.testing.assert_close(model.backbone.model.norm.weight.data, weights["norm.weight"])


@pytest.mark.parametrize("layout", ["FastMIM", "MAE", "SimMIM"])
def test_a_tensor_of_a_decoder_that_is_missing_renamed_or_of_another_shape(tmp_path: Path, layout: str) -> None:
    settings: dict[str, Any] = dict(OURS)
    if layout == "FastMIM":
        state = reference.official_checkpoint(out_channels=27, mask_token=(1, 3, 1, 1))
    elif layout == "MAE":
        state = mae_checkpoint()
        settings |= {"masking": "drop", "target": "pixels"}
    else:
        make = Maker()
        make.swin("encoder.", width=32, depths=(2, 2, 2), heads=(1, 2, 4), window=2, side=32)
        make.linear("decoder.0", 128, 3 * 16**2)
        state = make.state | {"encoder.mask_token": torch.zeros(1, 1, 32)}
        state["decoder.0.weight"] = state["decoder.0.weight"][..., None, None]
        settings = {"decoder": "linear", "target": "rgb"}
    name = "decoder.0.bias" if layout == "SimMIM" else "decoder_pred.bias"
    without = {key: tensor for key, tensor in state.items() if key != name}
    for changed, said in (
        (without, "missing keys decoder.head.bias)"),
        (without | {f"{name}s": state[name]}, "unknown keys decoder.head.biass; missing keys decoder.head.bias)"),
        (state | {name: state[name][:-1]}, f"other shapes decoder.head.bias ({len(state[name]) - 1},) instead of"),
    ):
        network = SWIN if layout == "SimMIM" else VIT
        assert f"decoder untrained ({said}" in started(converted(tmp_path, changed, network), **settings)[1]


def test_other_position_embeddings_in_the_decoder_of_mae(tmp_path: Path) -> None:
    for table in (torch.randn(1, GRID**2 + 1, DECODER_WIDTH), torch.zeros(1, 3, DECODER_WIDTH), torch.zeros(3)):
        conversion = converted(tmp_path, mae_checkpoint() | {"decoder_pos_embed": table}, VIT)
        assert not conversion.kept and not conversion.decoder
        assert conversion.note == (
            "the decoder is not kept, as its position embeddings are not the fixed sines and cosines of MAE"
        )
    assert started(conversion, **OURS, masking="drop", target="pixels")[1].endswith(
        "; decoder untrained (no w.pretraining.safetensors beside it)"
    )
    with pytest.raises(
        RequestError, match=r"checkpoint's mask_token \(1, 1, 1000000\d+\) repeats a few numbers; expec"
    ):
        converted(tmp_path, mae_checkpoint() | {"mask_token": torch.zeros(()).expand(1, 1, 10**9)}, VIT)


def test_files_beside_the_weights(tmp_path: Path) -> None:
    """They belong to one conversion: another one replaces or removes them, and others are refused."""
    state = reference.official_checkpoint(out_channels=27, mask_token=(1, 3, 1, 1))
    bare = {name: tensor for name, tensor in state.items() if "decoder" not in name and name != "mask_token"}
    conversion = converted(tmp_path, state, VIT)
    beside = tmp_path / "w.pretraining.safetensors"
    conversion.path.unlink()
    with pytest.raises(
        RequestError,
        match="out is .*w.safetensors, beside which w.pretraining.safetensors exists; expected a path that",
    ):
        fastmim.convert(tmp_path / "official.pth", out=conversion.path, **VIT)
    old = beside.read_bytes()
    converted(tmp_path, bare, VIT)
    assert not beside.exists()

    conversion = converted(tmp_path, {**bare, "norm.bias": bare["norm.bias"] + 1}, VIT)
    for content, message in (
        (old, "holds the decoder of other weights; expected that of the same conversion: convert again, or remove it"),
        (old[:100], "is damaged (.*); expected what `fastmim convert` wrote: convert again, or remove it"),
    ):
        beside.write_bytes(content)
        with pytest.raises(RequestError, match=message):
            started(conversion, **OURS)
    save_file({"mask_token": torch.zeros(3)}, beside)
    with pytest.raises(RequestError, match="holds the decoder of other weights"):
        started(conversion, **OURS)


# Whole runs


def test_a_run_goes_on_from_a_converted_checkpoint_and_from_a_run(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = reference.official_checkpoint(out_channels=27, mask_token=(1, 3, 1, 1))
    conversion = converted(tmp_path, state, VIT)
    given: dict[str, Any] = SMALL | VIT | OURS | {"data": str(photos), "steps": 1, "lr": 1e-12}
    first = fastmim.pretrain(**given, init=str(conversion.path), out=tmp_path / "first")
    assert f"init      encoder, decoder, mask token of {conversion.path}\n" in capsys.readouterr().out
    tensors = saved_model(first.out)
    torch.testing.assert_close(tensors["decoder.head.weight"], state["decoder_pred.weight"])
    torch.testing.assert_close(tensors["mask_token"], state["mask_token"].flatten())

    second = fastmim.pretrain(**given, init=str(first.out), out=tmp_path / "second")
    assert f"init      encoder, decoder, mask token of {first.out}\n" in capsys.readouterr().out
    assert all(torch.allclose(tensor, tensors[name]) for name, tensor in saved_model(second.out).items())

    for settings, said in (
        ({"target": "pixels"}, "encoder, mask token of {}; decoder untrained (it has learned hog, not pixels)"),
        ({"decoder": "32x1"}, "encoder, mask token of {}; decoder untrained (unknown keys decoder.blocks.1"),
    ):
        fastmim.pretrain(**(given | settings), init=str(first.out), out=tmp_path / "third", dry_run=True)
        assert said.format(first.out) in capsys.readouterr().out
    for checkpoint in (first.out / "checkpoints").iterdir():
        (checkpoint / "manifest.json").unlink()
    fastmim.pretrain(**given, init=str(first.out), out=tmp_path / "third", dry_run=True)
    said = f"decoder untrained (no checkpoint of step 1 in {first.out}); mask token untrained (no checkpoint"
    assert said in capsys.readouterr().out


def saved_model(out: Path) -> State:
    return load_file(max((out / "checkpoints").iterdir()) / "model.safetensors")
