"""Published weights: timm's and the Hub's, from a cache without a network, with their licences."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import fastmim
from conftest import SMALL
from fastmim import cli, weights
from fastmim.backbone import Backbone
from fastmim.errors import RequestError, RunError
from fastmim.method.build import from_timm, with_backbone
from fastmim.method.settings import PretrainConfig
from fastmim.weights import hub

NAME = "test_vit.r160_in1k"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None) -> Path:
    """An empty cache, and no network."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    return folder


def fill(cache: Path, repository: str, **files: Path) -> None:
    """Put files into the cache as a download would have done."""
    root = cache / f"models--{repository.replace('/', '--')}"
    snapshot = root / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True, exist_ok=True)
    (root / "refs").mkdir(exist_ok=True)
    (root / "refs/main").write_text("0123abc")
    for name, path in files.items():
        shutil.copy(path, snapshot / {"config": "config.json", "model": "model.safetensors"}[name])


def model_file(path: Path, seed: int = 1) -> Path:
    torch.manual_seed(seed)
    save_file(timm.create_model("test_vit").state_dict(), path)
    return path


def config_file(path: Path, **more: Any) -> Path:
    published = {"input_size": [3, 160, 160], "mean": [0.5] * 3, "std": [0.25] * 3, "license": "cc-by-nc-4.0"}
    path.write_text(json.dumps({"architecture": "test_vit", "pretrained_cfg": published} | more))
    return path


def run(out: Path, photos: Path, **more: Any) -> Any:
    settings = {key: value for key, value in SMALL.items() if not key.startswith("backbone")}
    return fastmim.pretrain(**(settings | {"data": str(photos), "out": out, "img_size": 64, "steps": 2} | more))


def test_timms_weights_come_from_the_cache_once(tmp_path: Path, photos: Path, cache: Path) -> None:
    """`timm:NAME` decides the backbone; resuming needs neither network nor cache."""
    fill(cache, f"timm/{NAME}", model=model_file(tmp_path / "model.safetensors"))
    out = run(tmp_path / "run", photos, init=f"timm:{NAME}", lr=1e-12).out
    theirs, ours = load_file(tmp_path / "model.safetensors"), load_file(out / "weights.safetensors")
    for name in ("blocks.0.attn.qkv.weight", "norm.bias", "patch_embed.proj.weight"):
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-6, rtol=0)
    origin = {"as": "init", "name": "test_vit", "tag": "r160_in1k", "licence": "apache-2.0"}
    assert weights.read(out)[1]["learned_from"] == [origin]
    assert "learned_from:\n- as: init\n  name: test_vit\n" in (out / "config.yaml").read_text()
    assert fastmim.config.read(out / "config.yaml")["backbone"] == NAME
    last = max((out / "checkpoints").iterdir())
    assert json.loads((last / "manifest.json").read_text())["learned_from"] == [origin]
    shutil.rmtree(cache)
    assert run(out, photos, init=f"timm:{NAME}", lr=1e-12).finished
    assert fastmim.pretrain(out=out).finished


def test_a_network_of_the_hub_teaches_and_its_licence_is_told(
    tmp_path: Path, photos: Path, labelled: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(cache, "lab/eye", config=config_file(tmp_path / "c"), model=model_file(tmp_path / "m", seed=2))
    out = run(tmp_path / "run", photos, init="hf-hub:lab/eye", teacher="init", target="hog+teacher").out
    said = " ".join(capsys.readouterr().out.split())
    assert "licence hf-hub:lab/eye is under cc-by-nc-4.0, which restricts use: read it before" in said
    assert "teacher init: test_vit at 160 px, smooth-l1 loss, checksum" in said
    config, (_, facts) = fastmim.config.read(out / "config.yaml"), weights.read(out)
    assert config["backbone"] == "test_vit"
    assert (facts["mean"], facts["std"]) == ([0.5] * 3, [0.25] * 3)  # as its weights are used to
    origin = {"name": "hf-hub:lab/eye", "tag": None, "licence": "cc-by-nc-4.0"}
    assert facts["learned_from"] == [{"as": "init"} | origin, {"as": "teacher"} | origin]
    fastmim.export(out, to="timm", out=tmp_path / "export")
    card = (tmp_path / "export/README.md").read_text()
    assert "| teacher | hf-hub:lab/eye | cc-by-nc-4.0 |" in card and "at 64 pixels" in card
    fill(cache, "me/mine", config=tmp_path / "export/config.json", model=tmp_path / "export/model.safetensors")
    again = weights.load_backbone("hf-hub:me/mine").state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in weights.load_backbone(out).state_dict().items())
    fastmim.pretrain(out=out)  # the teacher is in the cache
    settings = {"data": str(labelled), "device": "cpu", "num_workers": 0, "img_size": 64, "out": tmp_path / "p.json"}
    assert fastmim.probe(weights="hf-hub:lab/eye", **settings).report["width"] == 64


def test_a_network_of_ones_own_has_no_licence_to_tell(tmp_path: Path, vit_weights: Path) -> None:
    fastmim.export(vit_weights, to="timm", out=tmp_path / "export")
    assert "started untrained, and had no teacher" in (tmp_path / "export/README.md").read_text()


@pytest.fixture
def vit_weights(tmp_path: Path) -> Path:
    path = tmp_path / "w.safetensors"
    weights.save(path, Backbone("test_vit", img_size=64), about={})
    return path


def test_weights_of_unknown_licence_are_told(tmp_path: Path, photos: Path, cache: Path) -> None:
    published = {"input_size": [3, 160, 160], "mean": [0.5] * 3, "std": [0.25] * 3}
    fill(
        cache, "lab/eye", config=config_file(tmp_path / "c", pretrained_cfg=published), model=model_file(tmp_path / "m")
    )
    lines = weights.licences.describe(weights.open_weights("hf-hub:lab/eye").origins)
    assert lines == ["licence   hf-hub:lab/eye states none: ask its authors before you share what you train"]
    assert weights.licences.describe(weights.open_weights("resnet50.a1_in1k").origins) == []


@pytest.mark.parametrize("init", [f"timm:{NAME}", "hf-hub:lab/eye"])
def test_without_network_and_cache_the_message_says_what_to_download_where(
    init: str, tmp_path: Path, photos: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["pretrain", "--init", init, "--data", str(photos), "--out", str(tmp_path / "run"), "--img-size", "64"]
    with pytest.raises(SystemExit) as exit_:
        cli.main([*words, "--batch-size", "8", "--device", "cpu"])
    said = capsys.readouterr().err
    repository = init.replace("timm:", "timm/").removeprefix("hf-hub:")
    assert exit_.value.code == 1 and said.count("\n") == 1
    assert f"run `hf download {repository} " in said and f"copy its cache to {cache}" in said
    assert not (tmp_path / "run/config.yaml").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architecture": "no_such"}, "whose metadata has architecture 'no_such'"),
        ({"architecture": "test_resnet"}, "which does not hold the test_resnet that it says"),
        ({"model_args": {"pretrained": True}}, "whose metadata has argument 'pretrained'"),
        ({"model_args": {"checkpoint_path": "/x"}}, "whose metadata has argument 'checkpoint_path'"),
        ({"pretrained_cfg": None}, "which is not a timm model"),
        ({"pretrained_cfg": {"input_size": [3, 160, 160]}}, "which is not a timm model .'mean'."),
    ],
)
def test_a_strangers_config_is_checked(config: dict[str, Any], message: str, tmp_path: Path, cache: Path) -> None:
    fill(cache, "lab/eye", config=config_file(tmp_path / "c", **config), model=model_file(tmp_path / "m"))
    with pytest.raises(RequestError, match=f"weights is hf-hub:lab/eye, {message}"):
        weights.read("hf-hub:lab/eye")


def test_only_safetensors_are_fetched(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(repository: str, file: str, **_: Any) -> str:
        asked.append(file)
        if file == "config.json":
            return str(config_file(tmp_path / "c"))
        raise huggingface_hub.errors.EntryNotFoundError(f"no {file} in {repository}")

    monkeypatch.setattr(hub, "hf_hub_download", download)
    with pytest.raises(RequestError, match=r"has no model.safetensors for you \(no model.safetensors in lab/eye\)"):
        weights.read("hf-hub:lab/eye")
    assert set(asked) == {"config.json", "model.safetensors"}
    monkeypatch.undo()
    with pytest.raises(RequestError, match="weights is hf-hub:a b, which has no config.json for you"):
        weights.read("hf-hub:a b")


def test_other_weights_than_the_backbone_are_refused(tmp_path: Path, photos: Path) -> None:
    with pytest.raises(RequestError, match=r"init is timm:test_vit.r160_in1k with backbone test_resnet; expected"):
        run(tmp_path, photos, init=f"timm:{NAME}", backbone="test_resnet")
    with pytest.raises(RequestError, match="unknown backbone 'test_vti'"):
        run(tmp_path, photos, init="timm:test_vti")


@pytest.mark.parametrize("init", ["timm:resnet50.a1_in1k", "hf-hub:timm/resnet50.a1_in1k"])
def test_timms_own_repositories_are_timms_weights(init: str) -> None:
    config = with_backbone(fastmim.config.build(PretrainConfig, {"init": init}))
    assert config.backbone == "resnet50.a1_in1k" and from_timm(config.init)
    opened = weights.open_weights(init)
    assert (opened.kind, opened.origins[0]["licence"]) == ("timm", "apache-2.0")


def test_a_run_decides_the_backbone_of_the_next(tmp_path: Path, photos: Path, pretrained: Path) -> None:
    settings = {key: value for key, value in SMALL.items() if not key.startswith("backbone")}
    out = fastmim.pretrain(**settings | {"data": str(photos), "out": tmp_path, "init": str(pretrained), "steps": 1}).out
    config = fastmim.config.read(out / "config.yaml")
    assert config["backbone"] == SMALL["backbone"]
    assert config["backbone_args"].items() >= SMALL["backbone_args"].items()


def test_a_full_cache_needs_no_network_at_all(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even to ask for newer weights: with a dead network that takes half a minute a file."""
    fill(cache, f"timm/{NAME}", model=model_file(tmp_path / "m"))
    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", None)
    loaded = Backbone(NAME, img_size=160, pretrained=True).model.state_dict()
    theirs = load_file(tmp_path / "m")
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in loaded.items())
    with pytest.raises(RunError, match="pretrained weights of test_resnet: "):
        Backbone("test_resnet", img_size=160, pretrained=True)
