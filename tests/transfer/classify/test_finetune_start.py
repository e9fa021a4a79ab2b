"""The start of fine-tuning: a run's weights, to the bit, and a learning rate for each layer."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import fastmim
from conftest import SMALL
from fastmim import RequestError, weights
from fastmim.backbone import Backbone
from fastmim.transfer.classify.finetuner import build_classifier
from fastmim.transfer.classify.settings import FinetuneConfig
from fastmim.transfer.start import find_start
from tuning import NETWORK, equal, finetune, lines, tensors


def classifier(start_from: Path | str, **settings: Any) -> Any:
    config = FinetuneConfig(**({"data": "x", "weights": str(start_from), "img_size": 32} | settings))
    torch.manual_seed(0)
    start = find_start(config.weights, backbone=config.backbone, backbone_args=config.backbone_args)
    return build_classifier(config, start, num_classes=3, resuming=False)


def test_at_the_training_size_the_weights_are_those_of_the_checkpoint(pretrained: Path) -> None:
    model = classifier(pretrained).model.state_dict()
    trained = tensors(pretrained)
    backbone = {k.removeprefix("backbone.model."): v for k, v in trained.items() if k.startswith("backbone.model.")}
    assert model.keys() - backbone.keys() == {"head.weight", "head.bias", "fc_norm.weight", "fc_norm.bias"}
    assert backbone.keys() - model.keys() == {"norm.weight", "norm.bias"}
    shared = backbone.keys() & model.keys()
    assert equal({name: backbone[name] for name in shared}, {name: model[name] for name in shared})


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("vit_tiny_patch16_224", {}),
        ("swin_tiny_patch4_window7_224", {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 3, 4)}),
    ],
)
def test_weights_are_exact_at_the_training_size_and_resampled_as_a_backbone_is_at_another(
    tmp_path: Path, labelled: Path, name: str, args: dict[str, Any]
) -> None:
    data = str(labelled / "train")
    settings = {"backbone": name, "backbone_args": args, "img_size": 128, "steps": 1, "batch_size": 2, "lr": 1e-4}
    run = fastmim.pretrain(**(SMALL | settings | {"data": data, "out": tmp_path / "run"})).out
    trained = {k.removeprefix("backbone.model."): v for k, v in tensors(run).items() if "backbone.model." in k}
    same = classifier(run, img_size=128).model.state_dict()
    replaced = {"norm.weight", "norm.bias"} if name.startswith("vit") else set()  # by the norm of the mean
    kept = trained.keys() - replaced
    assert equal({key: trained[key] for key in kept}, {key: same[key] for key in kept})
    high = classifier(run, img_size=224)
    reference = Backbone(name, img_size=128, args=args)
    reference.model.load_state_dict(trained)
    reference.set_input_size(224)
    resampled = {key: tensor for key, tensor in reference.model.state_dict().items() if key not in replaced}
    assert equal(resampled, {key: high.model.state_dict()[key] for key in resampled})
    assert high(torch.zeros(1, 3, 224, 224)).shape == (1, 3)


def test_blocks_left_out_of_pretraining_start_fresh(
    tmp_path: Path, labelled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"data": str(labelled / "train"), "out": tmp_path / "half", "encoder_depth": 0.5, "steps": 4}
    run = fastmim.pretrain(**(SMALL | settings)).out
    stored = weights.read(run)[0]
    model = classifier(run).model.state_dict()
    untrained = classifier("none", **NETWORK).model.state_dict()
    for name in ("attn.qkv.weight", "mlp.fc1.weight"):
        assert torch.equal(model[f"blocks.0.{name}"], stored[f"blocks.0.{name}"])
        assert torch.equal(model[f"blocks.1.{name}"], untrained[f"blocks.1.{name}"])
        assert not torch.equal(model[f"blocks.1.{name}"], stored[f"blocks.1.{name}"])
    finetune(tmp_path / "run", labelled, weights=str(run), steps=1)
    assert "blocks.1: left out of pre-training, so they start untrained" in capsys.readouterr().out


def test_fine_tuning_can_start_from_a_fine_tuned_run(tmp_path: Path, labelled: Path) -> None:
    first = finetune(tmp_path / "first", labelled, steps=2)
    second = classifier(first.out).model.state_dict()
    trained = weights.read(first.weights)[0]
    assert torch.equal(second["blocks.0.attn.qkv.weight"], trained["blocks.0.attn.qkv.weight"])
    assert not torch.equal(second["head.weight"], trained["head.weight"])
    fastmim.load_backbone(first.out)


def test_the_mean_of_the_patches_is_classified_after_a_norm_of_its_own(pretrained: Path) -> None:
    model = classifier(pretrained).eval()
    assert torch.equal(model.model.fc_norm.weight, torch.ones(48)) and not model.model.fc_norm.bias.any()
    assert model.model.head.weight.std().item() == pytest.approx(2e-5, rel=0.3) and not model.model.head.bias.any()
    images = torch.randn(2, 3, 32, 32)
    backbone = Backbone("vit_tiny_patch16_224", img_size=32, args=SMALL["backbone_args"])
    weights.load_into(backbone, pretrained)
    backbone.model.norm = torch.nn.Identity()
    mean = backbone.eval()(images).mean((2, 3))
    expected = model.model.head(torch.nn.functional.layer_norm(mean, (48,), eps=1e-6))
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-8)


def test_pretraining_can_start_from_a_fine_tuned_vit(tmp_path: Path, labelled: Path) -> None:
    tuned = finetune(tmp_path / "tuned", labelled, steps=2)
    backbone = Backbone("vit_tiny_patch16_224", img_size=32, args=SMALL["backbone_args"])
    weights.load_into(backbone, tuned.out)
    stored = weights.read(tuned.out)[0]
    assert torch.equal(backbone.model.norm.weight, stored["fc_norm.weight"])
    assert torch.equal(backbone.model.blocks[0].attn.qkv.weight, stored["blocks.0.attn.qkv.weight"])
    settings = {"data": str(labelled / "train"), "out": tmp_path / "run", "init": str(tuned.out), "steps": 1}
    assert fastmim.pretrain(**(SMALL | settings)).finished


# Layer-wise learning rates


@pytest.mark.parametrize(
    ("name", "args", "first", "middle", "last"),
    [
        ("vit_tiny_patch16_224", {"depth": 3, "embed_dim": 48, "num_heads": 3}, "patch_embed.proj.weight",
         "blocks.1.attn.qkv.weight", "head.weight"),
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1), "embed_dim": 24}, "patch_embed.proj.weight",
         "layers.1.blocks.0.attn.qkv.weight", "head.fc.weight"),
        ("convnext_atto", {}, "stem.0.weight", "stages.1.blocks.0.conv_dw.weight", "head.fc.weight"),
        ("pvt_v2_b0", {}, "patch_embed.proj.weight", "stages.1.blocks.0.attn.q.weight", "head.weight"),
        ("twins_svt_small", {"depths": (1, 1, 1, 1)}, "patch_embeds.0.proj.weight", "blocks.1.0.attn.qkv.weight",
         "head.weight"),
        ("resnet18", {}, "conv1.weight", "layer2.0.conv1.weight", "fc.weight"),
        ("efficientnet_b0", {}, "conv_stem.weight", "blocks.2.0.conv_pw.weight", "classifier.weight"),
    ],
)  # fmt: skip
def test_layers_learn_at_falling_rates_in_every_family(
    name: str, args: dict[str, Any], first: str, middle: str, last: str
) -> None:
    model = classifier("none", backbone=name, backbone_args=args, img_size=64)
    names = {parameter: key for key, parameter in model.model.named_parameters()}
    groups = model.parameter_groups(weight_decay=0.05, layer_decay=0.5)
    scale = {names[p]: group["lr_scale"] for group in groups for p in group["params"]}
    decay = {names[p]: group["weight_decay"] for group in groups for p in group["params"]}
    assert scale.keys() == set(names.values())
    assert scale[last] == 1.0 == max(scale.values())
    assert scale[first] == min(scale.values()) < scale[middle] < 0.6
    spared = model.model.no_weight_decay() if hasattr(model.model, "no_weight_decay") else set()
    for key, parameter in model.model.named_parameters():
        assert (decay[key] == 0) == (parameter.ndim <= 1 or key in spared), key


def rate_exponents(name: str, args: dict[str, Any]) -> dict[str, int]:
    """Parameter name -> how often the layer decay multiplies the learning rate."""
    model = classifier("none", backbone=name, backbone_args=args, img_size=64)
    names = {parameter: key for key, parameter in model.model.named_parameters()}
    groups = model.parameter_groups(weight_decay=0.05, layer_decay=0.5)
    return {names[p]: -round(math.log2(group["lr_scale"])) for group in groups for p in group["params"]}


def test_pvtv2_learns_at_a_rate_for_each_block() -> None:
    """PVTv2-B2's 16 blocks make 18 layers; a stage's patch embedding and norm go with the block before them."""
    depths, widths = (3, 4, 6, 3), (8, 16, 40, 64)
    found = rate_exponents("pvt_v2_b2", {"depths": depths, "embed_dims": widths})
    assert len(set(found.values())) == 18
    for key, exponent in found.items():
        part = key.split(".")
        stage = int(part[1]) if part[0] == "stages" else 0
        before = sum(depths[:stage])  # blocks in the stages below
        if part[0] == "patch_embed":
            layer = 0
        elif key.startswith("head") or key.startswith("stages.3.norm"):
            layer = 17
        elif part[2] == "blocks":
            layer = before + int(part[3]) + 1
        else:
            layer = before if part[2] == "downsample" else before + depths[stage]
        assert exponent == 17 - layer, key


def test_swins_patch_merging_learns_with_the_block_before_it() -> None:
    depths = (2, 2, 3, 2)
    found = rate_exponents("swin_tiny_patch4_window7_224", {"depths": depths, "embed_dim": 24})
    for key, exponent in found.items():
        part = key.split(".")
        before = sum(depths[: int(part[1])]) if part[0] == "layers" else 0
        if part[0] == "patch_embed":
            layer = 0
        elif part[0] == "layers":
            layer = before if part[2] == "downsample" else before + int(part[3]) + 1
        else:  # the final norm and the classifier
            layer = 10
        assert exponent == 10 - layer, key


def test_layers_that_timm_cannot_tell_apart_are_refused(labelled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = classifier("none", **NETWORK)
    everything = [{"params": list(model.model.parameters()), "lr_scale": 1.0, "weight_decay": 0.0}]
    monkeypatch.setattr("fastmim.backbone.layers.param_groups_layer_decay", lambda *args, **kwargs: everything)
    with pytest.raises(RequestError, match=r"layer_decay is 0.5, and timm does not tell the layers of .* set it to 1"):
        model.parameter_groups(weight_decay=0.05, layer_decay=0.5)
    assert model.parameter_groups(weight_decay=0.05, layer_decay=1.0) == everything


def test_the_loop_multiplies_the_rate(tmp_path: Path, labelled: Path) -> None:
    out = finetune(tmp_path / "run", labelled, steps=4, warmup="0", layer_decay=0.5).out
    groups = json.loads((out / "checkpoints/step_000000004/manifest.json").read_text())["param_groups"]
    rate = lines(out)[-2]["lr"]
    assert {round(group["lr"] / rate, 6) for group in groups} == {1.0, 0.5, 0.25, 0.125}
