"""The backbone of detection and segmentation starts from any weights: a run's, a file's, none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import UNTRAINED
from fastmim import RequestError, weights
from fastmim.backbone import Backbone
from fastmim.backbone.multiscale import MultiScale
from fastmim.transfer.dense import build_trunk
from fastmim.transfer.dense_settings import DenseConfig
from fastmim.transfer.start import find_start
from tuning import tensors


def trunk(start_from: Path | str, *, img_size: int, resuming: bool = False, **settings: Any) -> MultiScale:
    config = DenseConfig(weights=str(start_from), **settings)
    start = find_start(config.weights, backbone=config.backbone, backbone_args=config.backbone_args)
    torch.manual_seed(0)
    return build_trunk(config, start, img_size=img_size, depths=1, resuming=resuming)


def test_a_runs_weights_are_loaded_to_the_bit(pretrained: Path) -> None:
    found = trunk(pretrained, img_size=32)
    trained = tensors(pretrained)
    assert found.frozen == {"norm.weight", "norm.bias"}
    for name, tensor in found.model.state_dict().items():
        assert torch.equal(tensor, trained[f"backbone.model.{name}"]) or name in found.frozen, name
    assert found.strides == (8,)
    resumed = trunk(pretrained, img_size=32, resuming=True)
    assert not torch.equal(resumed.model.patch_embed.proj.weight, found.model.patch_embed.proj.weight)


def test_a_position_embedding_is_resampled_as_a_backbone_resamples_it(pretrained: Path) -> None:
    reference = weights.load_backbone(pretrained, img_size=96)
    assert torch.equal(trunk(pretrained, img_size=96).model.pos_embed, reference.pos_embed)


def test_windows_have_the_size_of_the_weights_file(tmp_path: Path) -> None:
    """Swin, pre-trained at 128 px with windows of 4, on images of 512 px."""
    args = {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 3, 4)}
    path = tmp_path / "weights.safetensors"
    weights.save(path, Backbone("swin_tiny_patch4_window7_224", img_size=128, args=args), about={})
    table = trunk(path, img_size=512).model.get_parameter("layers.0.blocks.0.attn.relative_position_bias_table")
    assert table.shape == (7 * 7, 1)
    assert torch.equal(table, weights.files.read(path)[0]["layers.0.blocks.0.attn.relative_position_bias_table"])


def test_activations_are_checkpointed_on_request() -> None:
    untrained = {key: UNTRAINED[key] for key in ("backbone", "backbone_args")}
    found = trunk("none", img_size=32, checkpoint_activations=True, **untrained)
    assert all("forward" in vars(block) for block in found.model.blocks)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 0}, "window is 0; expected at least 1"),
        ({"layer_decay": 0}, "layer_decay is 0; expected more than 0 and at most 1, such as 0.75"),
        ({"drop_path": 1}, "drop_path is 1; expected 0 .none. or more, and less than 1"),
        ({"std": (1, 1, 0)}, r"std is \(1, 1, 0\); expected three numbers above 0"),
        ({"eval_every": "soon"}, "eval_every is 'soon'; expected a duration"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        DenseConfig(**settings)
