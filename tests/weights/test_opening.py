"""Opening what `--weights` names: runs at their newest checkpoint, weights files, timm models, untrained backbones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import fastmim
from conftest import SMALL
from fastmim import RequestError
from fastmim.weights import FILE, open_weights

WINDOWS = {"patch_size": 2, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
STAGED = {
    "backbone": "swin_tiny_patch4_window7_224",
    "backbone_args": WINDOWS,
    "stages": "32:0.5,64:0.5",
    "block": 8,
    "encoder_depth": 0.75,
    "batch_size": 4,
    "steps": 2,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """A run over two sizes, whose windows as an argument are for the first one, without its last block."""
    return fastmim.pretrain(**(SMALL | STAGED | {"data": str(photos), "out": tmp_path_factory.mktemp("run")})).out


def test_a_run_opens_at_its_newest_checkpoint(run: Path) -> None:
    opened = open_weights(str(run), from_checkpoint=True)
    assert (opened.kind, opened.img_size, opened.untrained) == ("run", 64, ("layers.1.blocks.1",))
    assert opened.identity().keys() == {"architecture", "step", "crc32"} and opened.identity()["step"] == 2
    backbone = opened.load()
    saved = load_file(run / "checkpoints/step_000000002/model.safetensors")
    assert all(torch.equal(tensor, saved[f"backbone.{name}"]) for name, tensor in backbone.state_dict().items())
    assert (backbone.img_size, backbone.untrained_blocks) == (64, opened.untrained)
    assert opened.load(96).img_size == 96
    with pytest.raises(RequestError, match=r"the weights hold backbone swin_tiny.*, not resnet18"):
        open_weights(str(run), backbone="resnet18", from_checkpoint=True)


def test_a_weights_file_holds_the_same_backbone(run: Path) -> None:
    opened = open_weights(str(run))
    assert (opened.kind, opened.img_size, opened.untrained) == ("file", 64, ("layers.1.blocks.1",))
    assert opened.origin == f"{run}: swin_tiny_patch4_window7_224 trained at 64 px, 3 of 4 blocks trained"
    backbone, trained = opened.load(), open_weights(str(run), from_checkpoint=True).load()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(backbone.eval()(images), trained.eval()(images))
    assert opened.identity() == open_weights(str(run / FILE)).identity()


def test_an_untrained_backbone_depends_on_the_generator() -> None:
    opened = open_weights("none", backbone="resnet10t")
    assert (opened.kind, opened.img_size, opened.identity()["untrained"]) == ("none", None, True)
    first, again, other = (torch.manual_seed(seed) and opened.load(64).state_dict() for seed in (0, 0, 1))
    assert torch.equal(first["model.conv1.0.weight"], again["model.conv1.0.weight"])
    assert not torch.equal(first["model.conv1.0.weight"], other["model.conv1.0.weight"])


def test_names_that_cannot_be_opened_are_refused() -> None:
    with pytest.raises(RequestError, match="no backbone is given; expected its name: --backbone NAME"):
        open_weights("none")
    with pytest.raises(RequestError, match=r"weights are not given; expected a run directory, .*--weights runs/pre"):
        open_weights(None)
    with pytest.raises(RequestError, match=r"weights is 'nosuch'; expected a run directory, a weights file, .*unknown"):
        open_weights("nosuch")
