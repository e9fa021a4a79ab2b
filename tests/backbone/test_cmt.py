"""CMT-S: the published figures, timm's interface, image sizes, pre-training and its weights."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import fastmim
from fastmim import weights
from fastmim.backbone import Backbone, Classifier, describe, find
from fastmim.errors import RequestError

# fastmim.backbone.cmt is not imported on purpose: importing fastmim.backbone must register the model.
SMALL = {"stem_width": 8, "embed_dims": (16, 24, 32, 48), "depths": (1, 1, 2, 1), "num_heads": (1, 1, 2, 2)}


def small(**more: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model("cmt_s", **{**SMALL, "head_width": 64, **more})


def test_the_published_size_and_cost() -> None:
    with torch.device("meta"):
        model = timm.create_model("cmt_s").eval()
        with FlopCounterMode(display=False) as counter:
            assert model(torch.zeros(1, 3, 224, 224)).shape == (1, 1000)
    # FastMIM's network has 26,256,160 parameters in fine-tuning; its final norm of 2 * 512 is in pre-training only.
    assert sum(p.numel() for p in model.parameters()) == 26_256_160 + 1024
    assert counter.get_total_flops() / 2 == pytest.approx(4.03e9, rel=1e-3)


def test_it_is_listed() -> None:
    assert find("cmt*") == ["cmt_s"]
    stride, width, parameters = describe("cmt_s")
    assert (stride, width) == (32, 512) and 24e6 < parameters < 26e6
    with pytest.raises(RequestError, match=r"unknown pretrained tag 'in1k' of cmt_s: expected none, there are none"):
        Backbone("cmt_s.in1k")


# The parts against their definitions


@pytest.mark.parametrize("reduction", [1, 2, 4])
def test_attention_is_what_the_paper_defines(reduction: int) -> None:
    """softmax(q k / sqrt(d) + b) v, a query and a key at a time."""
    torch.manual_seed(0)
    h, w, k = 4, 8, reduction
    attention = type(small().stages[0].blocks[0].attn)(6, 2, k).eval()
    bias = torch.randn(2, h * w, h * w // k**2)
    x = torch.randn(1, 6, h, w)
    with torch.no_grad():
        reduced = x
        if k > 1:
            convolution, norm = attention.reduce
            norm.running_mean.normal_()
            reduced = F.conv2d(x, convolution.weight, convolution.bias, stride=k, groups=6)
            reduced = (reduced - norm.running_mean[:, None, None]) / (1 + norm.eps) ** 0.5
        out = torch.empty(h, w, 6)
        for y in range(h):
            for z in range(w):
                query = attention.query(x[0, :, y, z]).view(2, 3)
                scores, values = [], []
                for i in range(h // k):
                    for j in range(w // k):
                        key, value = (f(reduced[0, :, i, j]).view(2, 3) for f in (attention.key, attention.value))
                        scores.append((query * key).sum(1) / 3**0.5 + bias[:, y * w + z, i * (w // k) + j])
                        values.append(value)
                share = torch.stack(scores).softmax(dim=0)  # (keys, heads)
                out[y, z] = attention.proj((share[..., None] * torch.stack(values)).sum(0).flatten())
        torch.testing.assert_close(attention(x, bias)[0].permute(1, 2, 0), out, rtol=1e-4, atol=1e-5)


def test_a_bias_keeps_its_meaning_at_another_size() -> None:
    """A bias that is linear in the places of query and key, as shares of the image, is so away from the borders."""

    def ramp(side: int) -> Tensor:
        """(1, side^2, 49 or 16) for k = 8."""
        places, coarse = ((torch.arange(n) + 0.5) / n for n in (side, side // 8))
        queries = places[:, None] + 10 * places
        keys = 2 * coarse[:, None] - coarse
        return (queries.flatten()[:, None] - keys.flatten())[None]

    stage = small(img_size=224, depths=(1, 1, 1, 1)).stages[0]
    stage.position_bias.data = ramp(56)
    stage.resize((32, 32))
    inner = stage.position_bias.detach().view(32, 32, 4, 4)[2:-2, 2:-2, 1:-1, 1:-1]
    torch.testing.assert_close(inner, ramp(32).view(32, 32, 4, 4)[2:-2, 2:-2, 1:-1, 1:-1], rtol=1e-2, atol=3e-2)
    stage.resize((32, 32))
    assert stage.position_bias.shape == (1, 1024, 16)


# timm's interface


def test_intermediate_maps() -> None:
    model = small(img_size=96).eval()
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        last, maps = model.forward_intermediates(images)
        assert [tuple(x.shape[1:]) for x in maps] == [(16, 24, 24), (24, 12, 12), (32, 6, 6), (48, 3, 3)]
        assert torch.equal(last, maps[-1]) and torch.equal(last, model.forward_features(images))
        early = model.forward_intermediates(images, indices=[1], stop_early=True, intermediates_only=True)
        assert torch.equal(early[0], maps[1])
        pyramid = timm.create_model("cmt_s", features_only=True, img_size=96, **SMALL).eval()
        assert [x.shape[1] for x in pyramid(images)] == pyramid.feature_info.channels() == [16, 24, 32, 48]
        assert model.prune_intermediate_layers(1) == [3]
        assert torch.equal(model(images), last)
    with pytest.raises(ValueError, match="output_fmt is NLC; expected NCHW"):
        model.forward_intermediates(images, output_fmt="NLC")


def test_classifiers() -> None:
    model = small(img_size=64, num_classes=10).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        pooled = model.forward_head(model.forward_features(images), pre_logits=True)
        assert model(images).shape == (2, 10) and pooled.shape == (2, model.num_features)
        model.reset_classifier(0)
        assert torch.equal(model(images), pooled)
        model.reset_classifier(3)
        assert model(images).shape == (2, 3) and model.get_classifier().out_features == 3
    bare = small(num_classes=0).state_dict().keys()
    assert small().state_dict().keys() - bare == {"head.weight", "head.bias"}  # the projection is kept


def test_checkpointing_changes_no_gradient() -> None:
    model = small(img_size=32, num_classes=2, drop_rate=0.0)
    images = torch.randn(2, 3, 32, 32)
    model(images).sum().backward()
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == {"norm.weight", "norm.bias"}
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    model.set_grad_checkpointing()
    model(images).sum().backward()
    for name, gradient in expected.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient)


def test_sizes_of_whole_strides_only() -> None:
    with pytest.raises(ValueError, match="img_size is 100; expected multiples of 32"):
        small(img_size=100)
    model = small(img_size=(64, 96)).eval()
    assert model.forward_features(torch.randn(1, 3, 64, 96)).shape == (1, 48, 2, 3)


# Pre-training


@pytest.mark.parametrize("size", [96, 128, 224])
def test_maps_at_any_size(size: int) -> None:
    torch.manual_seed(0)
    backbone = Backbone("cmt_s", img_size=size, args=SMALL)
    assert (backbone.input_size, backbone.stride, backbone.width, backbone.num_blocks) == (size, 32, 48, 5)
    images = torch.randn(2, 3, size, size)
    features = backbone(images)
    assert features.shape == (2, 48, size // 32, size // 32) and features.isfinite().all()
    features.square().mean().backward()
    assert all(p.grad is not None for p in backbone.parameters() if p.requires_grad)
    assert backbone.untrained == {f"projection.{layer}.{part}" for layer in (0, 1) for part in ("weight", "bias")}
    biases = backbone.no_weight_decay()
    assert len(biases) == 4 and biases <= {name for name, _ in backbone.named_parameters()}


def test_the_last_blocks_can_be_left_out() -> None:
    backbone = Backbone("cmt_s", img_size=64, encoder_depth=0.75, args=SMALL)
    assert backbone.untrained_blocks == ("stages.3.blocks.0",)
    assert backbone(torch.randn(2, 3, 64, 64)).shape == (2, 48, 2, 2)


def test_setting_the_size() -> None:
    backbone = Backbone("cmt_s", img_size=128, args=SMALL).eval()
    images = torch.randn(2, 3, 128, 128)
    before = backbone(images)
    backbone.set_input_size(128)
    assert torch.equal(backbone(images), before)
    state = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    backbone.set_input_size(224)
    assert backbone(torch.randn(1, 3, 224, 224)).shape == (1, 48, 7, 7)
    assert backbone.arguments()["img_size"] == (224, 224)
    backbone.set_input_size(128)
    backbone.load_native_state_dict(state)
    assert torch.equal(backbone(images), before)


def test_two_steps_over_two_sizes() -> None:
    torch.manual_seed(0)
    model = fastmim.MIM("cmt_s", img_size=64, block=32, decoder=(32, 1), backbone_args=SMALL)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    before = [p.detach().clone() for p in model.backbone.parameters() if p.requires_grad]
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 64, 64))["loss"].backward()
        optimizer.step()
    after = [p for p in model.backbone.parameters() if p.requires_grad]
    assert sum(bool((a != b).any()) for a, b in zip(after, before, strict=True)) > 0.9 * len(before)
    model.set_input_size(96)
    assert model(torch.randn(2, 3, 96, 96))["loss"].isfinite()


def test_saved_weights_load_back(tmp_path: Path) -> None:
    backbone = Backbone("cmt_s", img_size=64, args=SMALL).eval()
    weights.save(tmp_path / "w.safetensors", backbone, about={})
    images = torch.randn(1, 3, 64, 64)
    loaded = weights.load_backbone(tmp_path / "w.safetensors").eval()
    close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4)  # memory layouts may differ
    close(loaded.norm(loaded.forward_features(images)), backbone(images))
    model = timm.create_model("cmt_s", **backbone.arguments(), checkpoint_path=tmp_path / "w.safetensors").eval()
    close(model.norm(model.forward_features(images)), backbone(images))
    larger = weights.load_backbone(tmp_path / "w.safetensors", img_size=96).eval()
    assert larger(torch.randn(1, 3, 96, 96)).isfinite().all()


def test_plain_weights_are_timms_own_size() -> None:
    """On the meta device, as only names and shapes matter."""
    with torch.device("meta"):
        backbone = Backbone("cmt_s", img_size=128)
        state = backbone.native_state_dict()
        whole = timm.create_model("cmt_s").state_dict()
    assert backbone.arguments() == {}
    assert {name: x.shape for name, x in state.items()} == {name: x.shape for name, x in whole.items()}


def test_layers_for_fine_tuning() -> None:
    model = Classifier("cmt_s", num_classes=4, img_size=64, args=SMALL, drop_path=0.2)
    groups = model.parameter_groups(weight_decay=0.05, layer_decay=0.5)
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    named = dict(model.model.named_parameters())

    def scale(name: str) -> float:
        return scales[id(named[name])]

    order = ["stem.0.weight", "stages.0.downsample.0.weight", "stages.1.blocks.0.local.weight"]
    order += [
        "stages.2.blocks.0.attn.query.weight",
        "stages.2.blocks.1.attn.query.weight",
        "stages.3.blocks.0.local.weight",
    ]
    assert sorted(order, key=scale) == order and len(set(map(scale, order))) == len(order)
    assert scale("head.weight") == scale("projection.0.weight") == 1
    assert decays[id(named["stages.0.position_bias"])] == 0
    assert decays[id(named["stages.0.blocks.0.attn.query.weight"])] == 0.05
    assert model.model.stages[3].blocks[0].drop_path.drop_prob == pytest.approx(0.2)
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 4)
