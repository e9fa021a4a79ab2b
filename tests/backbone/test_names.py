"""Backbones' names and arguments, and descriptions of them without building one."""

from __future__ import annotations

import pytest
import timm

from fastmim.backbone import Backbone, describe, find, resolve
from fastmim.errors import RequestError, RunError


@pytest.mark.parametrize("prefix", ["", "timm/", "hf-hub:timm/", "hf_hub:timm/"])
def test_names_may_carry_timms_prefixes_and_tags(prefix):
    assert resolve(f"{prefix}resnet50.a1_in1k") == "resnet50.a1_in1k"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("swin_tiny", r"unknown backbone 'swin_tiny': .* the nearest are swin_tiny_patch4_window7_224"),
        ("resnet5", r"the nearest are resnet50, "),
        ("rasnet50", r"the nearest are .*resnet50"),
        ("qqqq", r"unknown backbone 'qqqq': .*`fastmim backbones` lists them"),
        ("", r"unknown backbone ''"),
        ("resnet50.nonsense", r"unknown pretrained tag 'nonsense' of resnet50: expected one of .*a1_in1k"),
        ("hf-hub:somebody/model", r"unknown backbone 'hf-hub:somebody/model'"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(name, message):
    with pytest.raises(RequestError, match=message) as caught:
        Backbone(name)
    assert "\n" not in str(caught.value)


def test_find_takes_shell_patterns():
    assert "pvt_v2_b2" in find("pvt_v2*")
    assert find("resnet50") == ["resnet50"]
    with pytest.raises(RequestError, match="unknown backbone 'resnot50'"):
        find("resnot50")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"embed_dims": 96}, "embed_dims.*expected arguments that timm's vit_tiny_patch16_224 takes"),
        ({"embed_dim": 97}, r"args \{'embed_dim': 97\}: .*correct or drop them"),
        ({"in_chans": 4}, "args in_chans: expected none, because images have three channels, RGB; drop it"),
        ({"img_size": 64}, "args img_size: expected only arguments that fastmim does not set"),
        (
            {"pretrained_cfg_overlay": {"url": "http://127.0.0.1:9/x"}},
            "args pretrained_cfg_overlay: expected only arguments",
        ),
    ],
)
def test_arguments_that_the_model_does_not_take_are_refused(args, message):
    with pytest.raises(RequestError, match=message) as caught:
        Backbone("vit_tiny_patch16_224", args=args)
    assert "\n" not in str(caught.value)


def test_unavailable_pretrained_weights_are_reported():
    name = "vit_small_patch16_36x1_224"
    assert name not in timm.list_models(pretrained=True)  # so timm refuses without asking the network
    with pytest.raises(RunError, match=f"pretrained weights of {name}: .*train from scratch"):
        Backbone(name, pretrained=True, args={"depth": 1})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vit_tiny_patch16_224", (16, 192, 5.5)),
        ("eva02_tiny_patch14_224", (16, 192, 5.5)),
        ("swin_tiny_patch4_window7_224", (32, 768, 27.5)),
        ("levit_128s", (64, 384, 7.0)),
        ("resnet10t", (32, 512, 4.9)),
    ],
)
def test_describe_gives_stride_width_and_parameters(name, expected):
    stride, width, parameters = describe(name)
    assert (stride, width, round(parameters / 1e6, 1)) == expected


def test_building_prints_nothing(caplog, capsys):
    Backbone("vit_tiny_patch16_224", args={"depth": 1}).set_input_size(160)
    assert not caplog.records
    assert capsys.readouterr() == ("", "")
