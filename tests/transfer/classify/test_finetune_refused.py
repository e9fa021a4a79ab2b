"""What `fastmim finetune` refuses, in one line; and what its recipes give."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from conftest import SMALL
from fastmim import RequestError, RunError
from tuning import NETWORK, finetune


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": ""}, "data is not given; expected labelled images: --data labelled/"),
        ({"data": "samples"}, "samples has no labels; expected class folders"),
        ({"weights": "no/such/run"}, "weights is 'no/such/run'; expected a run directory, a weights file, a timm"),
        ({"backbone": None}, "weights is none, but no backbone is given; expected its name: --backbone NAME"),
        ({"backbone": "vit_tinny_patch16_224"}, "vit_tiny_patch16_224"),
        ({"backbone": "vgg11", "backbone_args": {}, "drop_path": 0.1}, "drop_path is 0.1, and vgg11 has no drop path"),
        ({"batch_size": 65}, "64 images in .*/train are fewer than one batch of 65: lower --batch-size to 64 or less"),
        ({"num_labels": 2}, "--num-labels 2; expected at least one for each of the 3 classes"),
        ({"randaugment": "strong"}, "randaugment is 'strong'; expected a policy as timm writes it"),
        ({"recipe": "vit-bb"}, "recipe is 'vit-bb'; expected one of vit-b, swin-b; did you mean vit-b"),
        ({"val_share": 1.0}, "val_share is 1; expected more than 0 and less than 1, such as 0.1"),
        ({"ema": 1.0}, "ema is 1; expected more than 0 and less than 1, such as 0.9998"),
        ({"eval_crop": 1.5}, "eval_crop is 1.5; expected more than 0 and at most 1, such as 0.875"),
        ({"layer_decay": 0.0}, "layer_decay is 0; expected more than 0 and at most 1, such as 0.75"),
        ({"smoothing": 1.0}, "smoothing is 1; expected 0 \\(none\\) or more, and less than 1"),
        ({"mixup": -1.0}, "mixup is -1; expected 0 \\(none\\) or more"),
        ({"img_size": 0}, "img_size is 0; expected at least 1"),
        ({"eval_every": "often"}, "eval_every is 'often'; expected a duration"),
        ({"img_size": 4}, "vit_tiny_patch16_224 cannot take images of 4 px"),
    ],
)  # fmt: skip
def test_wrong_requests_are_refused(tmp_path: Path, labelled: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as error:
        finetune(tmp_path / "run", settings.pop("data", labelled), **(NETWORK | settings))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_weights_of_another_architecture_or_other_heads_are_refused(
    tmp_path: Path, labelled: Path, pretrained: Path
) -> None:
    with pytest.raises(RequestError, match="the weights hold backbone vit_tiny_patch16_224, not vit_small_patch16_224"):
        finetune(tmp_path / "run", labelled, weights=str(pretrained), backbone="vit_small_patch16_224")
    other = SMALL["backbone_args"] | {"num_heads": 6}
    with pytest.raises(RequestError, match="the weights hold num_heads 3, not 6"):
        finetune(tmp_path / "run", labelled, weights=str(pretrained), backbone_args=other)


def test_truncated_weights_are_refused(tmp_path: Path, labelled: Path, pretrained: Path) -> None:
    path = tmp_path / "half.safetensors"
    path.write_bytes((pretrained / "weights.safetensors").read_bytes()[:-1000])
    with pytest.raises(RequestError, match=r"half\.safetensors, which is damaged or not safetensors"):
        finetune(tmp_path / "run", labelled, weights=str(path))


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_pickle_does_not_run(tmp_path: Path, labelled: Path) -> None:
    path, proof = tmp_path / "weights.pth", tmp_path / "it_ran"
    path.write_bytes(pickle.dumps(_Bomb(proof)))
    with pytest.raises(RequestError, match=r"weights\.pth, which is damaged or not safetensors"):
        finetune(tmp_path / "run", labelled, weights=str(path))
    assert not proof.exists()


@pytest.mark.usefixtures("no_network")
def test_published_weights_that_cannot_be_had(
    tmp_path: Path, labelled: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One attempt, without the hub's own lines about five more."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(
        RunError, match=r"pretrained weights of resnet10t: .*; expected them in timm's cache or on the net"
    ):
        finetune(tmp_path / "run", labelled, weights="resnet10t")
    assert "etrying" not in capfd.readouterr().err


def test_changed_classes_are_refused_on_resuming(tmp_path: Path, labelled: Path) -> None:
    """Of the same images; others are told by their names."""
    data = tmp_path / "labels.csv"
    lines = [f"{path},{path.parent.name}" for path in sorted((labelled / "train").glob("*/*"))]
    data.write_text("\n".join(["path,label", *lines]))
    finetune(tmp_path / "run", data, steps=4)
    data.write_text(data.read_text().replace(",green", ",zigzag"))
    with pytest.raises(RequestError, match=r"data is .* with classes blue, red, zigzag; expected those that the run"):
        finetune(tmp_path / "run", data, steps=4)
