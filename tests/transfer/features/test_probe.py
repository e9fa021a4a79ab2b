"""Frozen features and their scores, checked against NumPy loops, known matrices and complete runs."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

import fastmim
from conftest import SMALL, UNTRAINED
from fastmim import Backbone, RequestError, RunError
from fastmim.data.augment import decode_center, normalise
from fastmim.data.labelled import open_labelled
from fastmim.data.sources import open_source
from fastmim.data.statistics import IMAGENET_MEAN, IMAGENET_STD
from fastmim.method.loss import masked_loss
from fastmim.method.mim import MIM
from fastmim.randomness import image_keys
from fastmim.transfer.features import online_probe, scores
from fastmim.transfer.features.encoder import Encoder, open_encoder
from fastmim.transfer.features.extraction import extract, gather
from fastmim.transfer.features.scores import LabelledFeatures
from fastmim.transfer.features.settings import FeatureConfig


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    fastmim.pretrain(**(SMALL | {"data": str(photos), "out": out}))
    return out


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes that differ in brightness: 20 training and 10 validation images each."""
    root = tmp_path_factory.mktemp("labelled")
    noise = np.random.default_rng(0)
    for part, number in (("train", 20), ("val", 10)):
        for name, level in (("dark", 40), ("light", 200)):
            (root / part / name).mkdir(parents=True)
            for index in range(number):
                pixels = np.clip(noise.normal(level, 20, (40, 48, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{index}.png")
    return root


def points(features: torch.Tensor, labels: list[int] | torch.Tensor) -> LabelledFeatures:
    return LabelledFeatures(features.float(), torch.as_tensor(labels))


def knn_by_loop(train: LabelledFeatures, val: LabelledFeatures, k: int, temperature: float) -> float:
    right = 0
    for vector, label in zip(val.features.numpy().astype(np.float64), val.labels.tolist(), strict=True):
        pairs = []
        for other, its_label in zip(train.features.numpy().astype(np.float64), train.labels.tolist(), strict=True):
            cosine = vector @ other / math.sqrt(vector @ vector) / math.sqrt(other @ other)
            pairs.append((cosine, its_label))
        votes: dict[int, float] = {}
        for cosine, its_label in sorted(pairs, reverse=True)[:k]:
            votes[its_label] = votes.get(its_label, 0.0) + math.exp(cosine / temperature)
        right += max(votes, key=lambda name: votes[name]) == label
    return right / len(val)


def test_knn_is_a_weighted_vote_of_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(3, 6, generator=generator)
    labels = torch.arange(60) % 3
    cloud = centers[labels] + 1.5 * torch.randn(60, 6, generator=generator)
    train, val = points(cloud[:45], labels[:45]), points(cloud[45:], labels[45:])
    monkeypatch.setattr(scores, "_SIMILARITIES", 4 * 45)  # 15 images in chunks of 4
    found = scores.knn(train, val, ks=(1, 5, 20, 45), temperature=0.3)
    assert found == {k: knn_by_loop(train, val, k, 0.3) for k in (1, 5, 20, 45)}
    assert len(set(found.values())) > 1  # otherwise the test is vacuous


def test_knn_weights_decide_against_the_majority() -> None:
    angles = torch.tensor([0.0, 1.2, 1.25])  # one near neighbour of class 0, two distant ones of class 1
    train = points(torch.stack([angles.cos(), angles.sin()], dim=1), [0, 1, 1])
    assert scores.knn(train, points(torch.tensor([[1.0, 0.05]]), [0]), ks=(3,)) == {3: 1.0}
    assert scores.knn(train, points(torch.tensor([[1.0, 0.05]]), [0]), ks=(3,), temperature=100.0) == {3: 0.0}


def test_knn_caps_k_at_the_number_of_training_images() -> None:
    train = points(torch.eye(3), [0, 1, 2])
    assert scores.knn(train, train) == {3: 1.0}


def test_linear_heads_separate_separable_classes_at_any_scale() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 4
    features = torch.randn(200, 8, generator=generator) + 6 * torch.nn.functional.one_hot(labels, 8)
    features = features * torch.logspace(-3, 3, 8) + 50  # standardising undoes this
    train, val = points(features[:150], labels[:150]), points(features[150:], labels[150:])
    found = scores.linear(train, val, num_steps=100)
    assert len(found) == 6
    assert max(found.values()) >= 0.98
    assert found == scores.linear(train, val, num_steps=100)
    rounded = scores.linear(train, val, num_steps=100, bf16=True)
    assert rounded == pytest.approx(found, abs=0.02)


@pytest.mark.parametrize("bf16", [False, True])
def test_heads_that_are_trained_to_the_end_are_the_best_and_unchanged_by_the_choice(bf16: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    labels = torch.arange(1200) % 6
    features = torch.randn(1200, 12, generator=generator) + 1.2 * torch.nn.functional.one_hot(labels, 12)
    train, val = points(features[:400], labels[:400]), points(features[400:], labels[400:])
    settings = {"learning_rates": (1e-4, 0.01, 0.1, 1e6), "weight_decays": (0.0, 0.01), "num_steps": 200, "bf16": bf16}
    every = scores.linear(train, val, rungs=(), **settings)
    found = scores.linear(train, val, rungs=(0.2, 0.4), **settings)
    assert len(every) == 8 and len(found) == 2
    assert found == {head: every[head] for head in found}
    assert max(found.values()) >= max(every.values()) - 0.005
    assert (1e6, 0.01) not in found  # it diverges


def test_a_linear_head_is_independent_of_the_others_and_follows_sgd() -> None:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(90) % 3
    features = torch.randn(90, 5, generator=generator) + 0.7 * torch.nn.functional.one_hot(labels, 5)
    train, val = points(features[:60], labels[:60]), points(features[60:], labels[60:])
    settings = {"num_steps": 30, "batch_size": 20, "seed": 3, "rungs": ()}
    together = scores.linear(train, val, learning_rates=(1e-3, 0.1, 1e6), weight_decays=(0.0, 0.05), **settings)
    alone = scores.linear(train, val, learning_rates=(0.1,), weight_decays=(0.05,), **settings)
    assert together[0.1, 0.05] == alone[0.1, 0.05]

    mean, std = train.features.mean(0), train.features.std(0)
    head = torch.nn.Linear(5, 3)
    torch.nn.init.zeros_(head.weight), torch.nn.init.zeros_(head.bias)
    decays = [{"params": [head.weight], "weight_decay": 0.05}, {"params": [head.bias]}]
    optimizer = torch.optim.SGD(decays, lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30)
    order = torch.Generator().manual_seed(3)
    for _ in range(10):
        for batch in torch.randperm(60, generator=order).split(20):
            loss = torch.nn.functional.cross_entropy(head((train.features[batch] - mean) / std), train.labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    top1 = (head((val.features - mean) / std).argmax(1) == val.labels).float().mean().item()
    assert top1 == pytest.approx(together[0.1, 0.05])


@pytest.mark.parametrize(
    ("matrix", "rank"),
    [
        (torch.cat([torch.eye(5), -torch.eye(5)]), 5.0),
        (torch.cat([torch.eye(5), -torch.eye(5)]) + 1000, 5.0),
        (torch.outer(torch.randn(40, generator=torch.Generator().manual_seed(0)), torch.ones(7)), 1.0),
        (torch.ones(6, 4), 0.0),
        (torch.tensor([[3.0, 0], [-3, 0], [0, 1], [0, -1]]), math.exp(0.75 * math.log(4 / 3) + 0.25 * math.log(4))),
        (torch.tensor([[1.0, 2, 3, 4, 5], [5, 4, 3, 2, 1]]), 1.0),
    ],
)
def test_effective_rank_of_known_matrices(matrix: torch.Tensor, rank: float) -> None:
    assert scores.effective_rank(matrix) == pytest.approx(rank, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "args", "size"),
    [
        ("vit_tiny_patch16_224", {"embed_dim": 48, "depth": 3, "num_heads": 3}, 48),
        ("deit3_small_patch16_224", {"embed_dim": 48, "depth": 2, "num_heads": 3}, 48),
        ("swin_tiny_patch4_window7_224", {"embed_dim": 24, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 4, 8)}, 64),
        ("test_convnext", {}, 64),
        ("test_resnet", {}, 64),
        ("pvt_v2_b0", {}, 64),
    ],
)
def test_features_equal_timms_at_any_block(name: str, args: dict[str, Any], size: int) -> None:
    backbone = Backbone(name, img_size=size, args=args)
    images = torch.randint(256, (2, 3, size, size), dtype=torch.uint8)
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    x = (images / 255 - mean[:, None, None]) / std[:, None, None]
    model = backbone.model.eval()
    with torch.no_grad():
        maps = model.forward_intermediates(x, norm=True, intermediates_only=True)
        for block in (0, -1):
            found = Encoder(backbone, block=block).eval()(images)
            torch.testing.assert_close(found, maps[block].mean((2, 3)))


def test_the_class_token_equals_timms_and_both_concatenates() -> None:
    backbone = Backbone("vit_tiny_patch16_224", img_size=48, args={"embed_dim": 48, "depth": 2, "num_heads": 3})
    images = torch.randint(256, (2, 3, 48, 48), dtype=torch.uint8)
    encoder = Encoder(backbone, pool="cls").eval()
    mean, std = encoder.mean[:, None, None], encoder.std[:, None, None]
    with torch.no_grad():
        expected = backbone.model.eval()((images / 255 - mean) / std)  # pooled by the class token
        torch.testing.assert_close(encoder(images), expected)
        both = Encoder(backbone, pool="both")
        assert both.width == 96
        torch.testing.assert_close(both(images)[:, 48:], expected)
        torch.testing.assert_close(both(images)[:, :48], Encoder(backbone)(images))


def test_extraction_keeps_the_order_with_and_without_workers(photos: Path) -> None:
    source = open_source(str(photos))
    encoder = Encoder(Backbone(SMALL["backbone"], img_size=32, args=SMALL["backbone_args"])).eval()
    one = gather(extract(encoder, source, batch_size=5), "photos")
    two = gather(extract(encoder, source, batch_size=5, num_workers=2), "photos")
    assert one.indices.tolist() == list(range(24)) and torch.equal(one.features, two.features)
    some = gather(extract(encoder, source, indices=np.array([7, 2]), batch_size=5), "photos")
    torch.testing.assert_close(some.features, one.features[[7, 2]])


def test_extraction_leaves_modes_and_generators_alone(photos: Path) -> None:
    backbone = Backbone("test_resnet", img_size=64).train()
    backbone.model.layer1.eval()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    state = torch.get_rng_state()
    encoder = Encoder(backbone)
    list(extract(encoder, open_source(str(photos)), num_workers=1))
    assert torch.equal(state, torch.get_rng_state())
    assert backbone.training and not backbone.model.layer1.training and backbone.model.layer2.training
    assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())


def probe(**settings: Any) -> Any:
    return fastmim.probe(**({"num_workers": 0, "device": "cpu"} | settings))


@pytest.mark.parametrize("method", ["knn", "linear"])
def test_a_probe_of_a_run_tells_classes_apart(tmp_path: Path, run: Path, labelled: Path, method: str) -> None:
    out = tmp_path / "new" / "probe.json"
    result = probe(weights=str(run), data=str(labelled), method=method, out=out)
    report = json.loads(out.read_text())
    assert result.top1 == 1.0 == report["best"]["top1"]
    assert (report["num_train"], report["num_val"], report["width"], report["img_size"]) == (40, 20, 48, 32)
    assert report["weights"]["step"] == 12 and 1 <= report["effective_rank"] <= 48
    if method == "knn":
        assert [row["k"] for row in report["results"]] == [5, 10, 20, 40]
    else:
        assert len(report["results"]) == 6


def test_a_runs_features_come_from_its_last_step_and_equal_its_files(tmp_path: Path, run: Path, photos: Path) -> None:
    def features(**settings: Any) -> torch.Tensor:
        encoder, _ = open_encoder(FeatureConfig(device="cpu", **settings))
        return gather(extract(encoder, open_source(str(photos))), "photos").features

    trained = load_file(max((run / "checkpoints").iterdir()) / "model.safetensors")
    model = timm.create_model(
        SMALL["backbone"], img_size=32, num_classes=0, global_pool="avg", **SMALL["backbone_args"]
    )
    prefix = "backbone.model."
    own = {name.removeprefix(prefix): value for name, value in trained.items() if name.startswith(prefix)}
    own["fc_norm.weight"], own["fc_norm.bias"] = own.pop("norm.weight"), own.pop("norm.bias")
    model.load_state_dict(own)
    encoder = Encoder(Backbone(SMALL["backbone"], img_size=32, args=SMALL["backbone_args"]))
    source = open_source(str(photos))
    images = torch.stack([decode_center(source.read(index), 32) for index in range(24)])
    tokens = model.eval().forward_features(normalise(images, encoder.mean, encoder.std))[:, 1:]
    expected = torch.nn.functional.layer_norm(tokens, (48,), own["fc_norm.weight"], own["fc_norm.bias"], 1e-6).mean(1)
    torch.testing.assert_close(features(weights=str(run)), expected.detach(), rtol=1e-4, atol=1e-5)
    file = features(weights=str(run / "weights.safetensors"))
    torch.testing.assert_close(file, expected.detach(), rtol=1e-4, atol=1e-5)
    assert features(weights=str(run), img_size=48).shape == (24, 48)


def test_few_labels_and_unreadable_images(tmp_path: Path, labelled: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(labelled, data)
    (data / "train" / "dark" / "3.png").write_bytes(b"not a picture")
    out = tmp_path / "probe.json"
    with pytest.raises(RunError, match=r"1 of 40 images .* \(2.5%\) cannot be read, the first is .*3.png"):
        probe(**UNTRAINED, data=str(data), out=out, max_bad_share=0.01)
    probe(**UNTRAINED, data=str(data), out=out)
    report = json.loads(out.read_text())
    assert report["num_train"] == 39 and report["bad_images"][0][0].endswith("dark/3.png")
    with pytest.raises(RequestError, match=r"out is .*probe.json, which exists; .*: take another --out, or add --over"):
        probe(**UNTRAINED, data=str(labelled), out=out, num_labels=6)
    probe(**UNTRAINED, data=str(labelled), out=out, num_labels=6, overwrite=True)
    assert json.loads(out.read_text())["num_train"] == 6


def test_a_dry_run_writes_nothing(
    tmp_path: Path, labelled: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = UNTRAINED | {"data": str(labelled), "out": tmp_path / "probe.json", "dry_run": True}
    probe(**settings)
    said = capsys.readouterr().out
    assert "40 images train, 20 validate, 2 classes" in said and "bf16 is slow" not in said
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    probe(**settings | {"precision": "bf16"})
    assert "note      bf16 is slow on this processor" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_the_command_takes_flags_over_a_file(
    tmp_path: Path, labelled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from fastmim.cli import main

    settings = tmp_path / "probe.yaml"
    settings.write_text(json.dumps(UNTRAINED | {"data": str(labelled), "block": 7}))
    words = ["probe", "--config", str(settings), "--out", str(tmp_path / "probe.json")]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--block", "-2"])
    assert ended.value.code == 0
    assert json.loads((tmp_path / "probe.json").read_text())["settings"]["block"] == -2
    assert "100.00%" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main([*words, "--overwrite"])
    assert ended.value.code == 2
    assert "fastmim: block is 7; expected -2 to 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": None}, "weights are not given; expected a run directory, a weights file, a timm model"),
        ({"data": None}, "data is not given; expected labelled images: --data labelled/"),
        ({"weights": "no/such/run"}, r"weights is 'no/such/run'; expected a run directory.*\(unknown backbone"),
        ({"backbone": None, "backbone_args": {}}, "weights is none, but no backbone is given; expected its name"),
        ({"block": 2}, "block is 2; expected -2 to 1, as vit_tiny_patch16_224 has 2 blocks or stages: -1 is the last"),
        ({"block": -3}, "block is -3; expected -2 to 1"),
        (
            {"backbone": "resnet18", "backbone_args": {}, "img_size": 64, "pool": "cls"},
            "pool is 'cls', but resnet18 gives no class token; expected avg: --pool avg",
        ),
        ({"pool": "max"}, "pool is 'max'; expected"),
        ({"method": "svm"}, "method is 'svm'; expected"),
        ({"batch_size": 0}, "batch_size is 0; expected at least 1"),
        ({"num_workers": -1}, "num_workers is -1; expected 0"),
        ({"max_bad_share": 2}, "max_bad_share is 2; expected 0 to 1"),
        ({"num_labels": 0}, "num_labels is 0; expected at least one for each class"),
        ({"device": "gpu"}, "device is 'gpu'; expected one that this machine has"),
        ({"out": "/dev/null/probe.json"}, "out is /dev/null/probe.json: .*; expected a file that can be written"),
        ({"wieghts": "none"}, "unknown setting 'wieghts'; did you mean weights"),
    ],
)  # fmt: skip
def test_wrong_requests_are_refused(tmp_path: Path, labelled: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as error:
        probe(**(UNTRAINED | {"data": str(labelled), "out": tmp_path / "probe.json"} | settings))
    assert "\n" not in str(error.value)


def test_other_weights_than_expected_are_refused(tmp_path: Path, run: Path, labelled: Path) -> None:
    asked = {"data": str(labelled), "out": tmp_path / "probe.json"}
    for weights in (run, run / "weights.safetensors"):
        with pytest.raises(RequestError, match="the weights hold backbone vit_tiny_patch16_224, not resnet18"):
            probe(weights=str(weights), backbone="resnet18", **asked)
        heads = SMALL["backbone_args"] | {"num_heads": 6}
        with pytest.raises(RequestError, match="the weights hold num_heads 3, not 6"):
            probe(weights=str(weights), backbone=SMALL["backbone"], backbone_args=heads, **asked)


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_the_online_probe_reports_without_changing_the_run(
    tmp_path: Path, photos: Path, labelled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # With drop path, a disturbed generator or a model left in evaluation mode would change the weights.
    settings = SMALL | {"data": str(photos), "backbone_args": SMALL["backbone_args"] | {"drop_path_rate": 0.5}}
    fastmim.pretrain(**settings, out=tmp_path / "without")
    fastmim.pretrain(**settings, out=tmp_path / "with", probe=str(labelled), probe_every="4 steps")
    assert "probe at step 4: held-out loss 0." in capsys.readouterr().out
    without, with_ = (
        load_file(max((tmp_path / name / "checkpoints").iterdir()) / "model.safetensors")
        for name in ("without", "with")
    )
    assert without.keys() == with_.keys() and all(torch.equal(without[name], with_[name]) for name in without)
    probed = [line for line in metrics(tmp_path / "with") if "probe_knn" in line]
    assert [line["step"] for line in probed] == [4, 8, 12]
    assert all(0 <= line["probe_knn"] <= 1 and 1 <= line["probe_effective_rank"] <= 48 for line in probed)
    losses = {
        name: [(line["step"], line["loss"]) for line in metrics(tmp_path / name) if "loss" in line]
        for name in ("without", "with")
    }
    assert losses["with"] == losses["without"]


def test_the_held_out_loss_is_the_mean_over_images_each_with_its_own_mask(labelled: Path) -> None:
    torch.manual_seed(0)
    model = MIM(SMALL["backbone"], img_size=32, backbone_args=SMALL["backbone_args"]).train()
    images = open_labelled(str(labelled))
    first = online_probe.measure(model, images, seed=5, batch_size=7)  # 20 images: batches of 7, 7 and 6
    assert first == pytest.approx(online_probe.measure(model, images, seed=5, batch_size=20), rel=1e-5)
    assert model.training
    mean, std = (torch.tensor(values) for values in (IMAGENET_MEAN, IMAGENET_STD))
    losses = []
    for index in range(len(images.val)):
        image = normalise(decode_center(images.val.read(index), 32), mean, std)[None]
        with torch.no_grad():
            output = model.eval()(image, image_keys(5, 0, torch.tensor([index])))
        losses.append(masked_loss(output["prediction"], output["target"], output["mask"]).item())
    assert first["probe_mim_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_a_wrong_online_probe_is_refused_before_the_run(tmp_path: Path, photos: Path) -> None:
    settings = SMALL | {"data": str(photos), "out": tmp_path / "run"}
    with pytest.raises(RequestError, match="has no labels"):
        fastmim.pretrain(**settings, probe=str(photos))
    with pytest.raises(RequestError, match="probe_every is 'often'"):
        fastmim.pretrain(**settings, probe_every="often")
    assert not (tmp_path / "run").exists()
