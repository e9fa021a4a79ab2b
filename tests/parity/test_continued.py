"""The official pre-trainings go on from their own checkpoints: encoder, decoder and mask token give their losses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import fastmim
from conftest import SMALL
from fastmim import RequestError
from foreign_models import Maker, State
from parity import checkpoints, reference
from parity.checkpoints import CHECKPOINTS, OURS, SWIN, VIT, converted, started
from parity.reference import DECODER_WIDTH, GRID

FLAGS = {
    "FastMIM ViT": "--decoder 64x2 --target hog",
    "FastMIM ViT, pixels": "--decoder 64x2 --target pixels",
    "FastMIM Swin": "--decoder 64x1 --target hog",
    "FastMIM PVTv2": "--decoder 64x1 --target hog",
    "FastMIM CMT": "--decoder 64x1 --target hog",
    "MAE ViT": "--decoder 64x2 --target pixels --masking drop",
    "SimMIM Swin": "--decoder linear --target rgb --loss l1",
    "SimMIM ViT": "--decoder linear --target rgb --loss l1",
}


@pytest.mark.parametrize("layout", CHECKPOINTS)
def test_the_first_loss_is_that_of_the_official_code(tmp_path: Path, layout: str) -> None:
    official = CHECKPOINTS[layout]()
    conversion = converted(tmp_path, official.state, official.network)
    assert conversion.decoder == FLAGS[layout]
    model, line = started(conversion, **official.settings, img_size=official.size)
    state = checkpoints.in_double(official.state)
    if layout.startswith("SimMIM"):  # its mask token has the width of the embedded patches, which it replaces
        assert line.startswith(f"encoder, decoder of {conversion.path}; mask token untrained (")
        assert line.endswith("w.pretraining.safetensors has none)") and model.mask_token is not None
        assert (
            conversion.note == "SimMIM's mask token replaces embedded patches and ours pixels, so that it is not kept"
        )
        state["mask_token"] = model.mask_token.detach().double()
    elif layout.startswith("MAE"):
        assert line == f"encoder, decoder of {conversion.path}"  # the mask token is the decoder's
        assert conversion.dropped == ("decoder_pos_embed",) and "img-size 32 --decoder 64x2" in conversion.describe()
        assert f"beside it  {tmp_path / 'w.pretraining.safetensors'}: mask_token, decoder_" in conversion.describe()
    else:
        assert line == f"encoder, decoder, mask token of {conversion.path}"
    with torch.no_grad():
        images, output = checkpoints.run(model, official.size)
        expected = checkpoints.loss(official, state, images, output)
    torch.testing.assert_close(output["loss"].double(), expected, rtol=1e-6, atol=0)


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
        state = checkpoints.mae().state
        settings |= {"masking": "drop", "target": "pixels"}
    else:
        make = Maker()
        make.swin("encoder.", width=32, depths=(2, 2, 2), heads=(1, 2, 4), window=2, side=32)
        make.linear("decoder.0", 128, 3 * 16**2)
        state = make.state | {"encoder.mask_token": torch.zeros(1, 1, 32)}
        state["decoder.0.weight"] = state["decoder.0.weight"][..., None, None]
        settings = {"decoder": "linear", "target": "rgb"}
    name = "decoder.0.bias" if layout == "SimMIM" else "decoder_pred.bias"
    weight, head = ("decoder.0.weight",) * 2 if layout == "SimMIM" else ("decoder_embed.weight", "decoder_pred.weight")
    without = {key: tensor for key, tensor in state.items() if key != name}
    for changed, said in (
        (without, "missing keys decoder.head.bias)"),
        (without | {f"{name}\n": state[name]}, "unknown keys decoder.head.bias\\n; missing keys decoder.head.bias)"),
        (state | {name: state[name][:-1]}, f"other shapes decoder.head.bias ({len(state[name]) - 1},) instead of"),
        (
            state | {weight: torch.zeros(())},
            f"other shapes decoder.{'head' if layout == 'SimMIM' else 'embed'}.weight ()",
        ),
        (state | {head: torch.zeros(7, *state[head].shape[1:])}, "other shapes decoder.head.weight (7, "),
    ):
        network = SWIN if layout == "SimMIM" else VIT
        assert f"decoder untrained ({said}" in started(converted(tmp_path, changed, network), **settings)[1]


def test_other_position_embeddings_in_the_decoder_of_mae(tmp_path: Path) -> None:
    for table in (torch.randn(1, GRID**2 + 1, DECODER_WIDTH), torch.zeros(1, 3, DECODER_WIDTH), torch.zeros(3)):
        conversion = converted(tmp_path, checkpoints.mae().state | {"decoder_pos_embed": table}, VIT)
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
        converted(tmp_path, checkpoints.mae().state | {"mask_token": torch.zeros(()).expand(1, 1, 10**9)}, VIT)


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
