"""Pictures of features, and the numbers of blocks, against plain reference forms."""

from __future__ import annotations

import json
import re
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import fastmim
from conftest import SMALL
from fastmim import RequestError, RunError, cli
from fastmim.backbone.attention_maps import attention_distance
from fastmim.transfer.features import pictures
from fastmim.transfer.features.visualise import visualise_features

VIT = {"name": SMALL["backbone"], "img_size": 32, "args": SMALL["backbone_args"]}


def backbone(**changes: object) -> fastmim.Backbone:
    torch.manual_seed(0)
    return fastmim.Backbone(**(VIT | changes)).eval()  # type: ignore[arg-type]


def images(num: int = 2) -> Tensor:
    return torch.randn(num, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_attention_is_the_softmax_of_queries_and_keys() -> None:
    network = backbone()
    seen: list[Tensor] = []
    first = network.model.blocks[0].attn  # type: ignore[union-attr, index]
    hook = first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    maps, num_prefix = network.attention_maps(images())
    hook.remove()
    query, key, _ = first.qkv(seen[0]).reshape(2, 17, 3, 3, 16).permute(2, 0, 3, 1, 4)
    expected = (query @ key.transpose(-2, -1) / 4).softmax(-1)
    assert num_prefix == 1 and [tuple(weights.shape) for weights in maps] == [(2, 3, 17, 17)] * 2
    assert torch.allclose(maps[0], expected, atol=1e-6)


def test_attention_leaves_the_model_as_it_was() -> None:
    network = backbone()
    with torch.no_grad():
        before = network(images())
        network.attention_maps(images())
        assert torch.equal(network(images()), before)
    assert not any(module._forward_pre_hooks for name, module in network.named_modules() if name.endswith("attn_drop"))


def test_attention_distance_is_the_mean_way_to_what_is_attended() -> None:
    weights = torch.rand(2, 3, 10, 10, generator=torch.Generator().manual_seed(0)).softmax(-1)
    total = 0.0
    for image, head, query in product(range(2), range(3), range(9)):
        row = weights[image, head, 1 + query, 1:].double().numpy()
        for key, weight in enumerate(row / row.sum()):
            total += weight * np.hypot(query // 3 - key // 3, query % 3 - key % 3) * 8
    assert attention_distance(weights, num_prefix=1, stride=8) == pytest.approx(total / (2 * 3 * 9), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "args"), [("swin_tiny_patch4_window7_224", {"depths": [1, 1, 1, 1], "embed_dim": 24}), ("resnet10t", {})]
)
def test_models_without_whole_attention(name: str, args: dict[str, object]) -> None:
    network = backbone(name=name, img_size=64, args=args)
    batch = torch.randn(2, 3, 64, 64)
    with pytest.raises(RequestError, match="has no attention of all tokens to all tokens; expected a plain ViT, such"):
        pictures.draw_attention(network, batch, batch.clamp(0, 1))
    rows = pictures.measure_blocks(network, batch)
    assert len(rows) == network.num_maps and all(row.keys() == {"block", "effective_rank"} for row in rows)
    assert pictures.draw_features(network, batch, batch.clamp(0, 1)).size[0] > 400


def test_blocks_are_measured_as_one_by_one() -> None:
    network = backbone()
    rows = pictures.measure_blocks(network, images(4))
    for number, row in enumerate(rows):
        with torch.no_grad():
            features = network.inner_map(images(4), number)[0].movedim(1, -1).flatten(0, -2).double()
        singular = torch.linalg.svdvals(features - features.mean(0))
        share = singular / singular.sum()
        assert row["effective_rank"] == pytest.approx(float((-share * share.log()).nansum().exp()), rel=1e-3)
        assert row["block"] == number + 1 and 0 < row["attention_distance"] < 32


def test_colours_are_principal_components_fitted_across_the_images() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3, 6, 5, 5, generator=generator) * torch.tensor([9.0, 5, 3, 0.1, 0.1, 0.1]).view(6, 1, 1)
    colours = pictures.components_as_colours(features)
    vectors = features.movedim(1, -1).reshape(-1, 6).numpy()
    _, axes = np.linalg.eigh(np.cov(vectors.T))
    for channel in range(3):
        values = (vectors - vectors.mean(0)) @ axes[:, -1 - channel]
        drawn = colours[:, channel].flatten().numpy()
        inside = (drawn > 0) & (drawn < 1)
        assert inside.mean() > 0.9 and abs(np.corrcoef(values[inside], drawn[inside])[0, 1]) > 0.9999
    assert colours.min() == 0 and colours.max() == 1


def test_few_features_and_equal_ones_have_colours_too() -> None:
    assert pictures.components_as_colours(torch.zeros(2, 8, 2, 2)).isfinite().all()
    assert pictures.components_as_colours(torch.randn(1, 2, 2, 2)).shape == (1, 3, 2, 2)


def test_neighbours_are_the_most_similar_others() -> None:
    features = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    found = pictures.find_neighbours(features, [0, 7], num=3)
    for row in found.tolist():
        query, *others = row
        similarity = [float(torch.cosine_similarity(features[query], each, dim=0)) for each in features]
        ranked = sorted((n for n in range(20) if n != query), key=lambda n: -similarity[n])
        assert others == ranked[:3]
    assert pictures.find_neighbours(features[:2], [0], num=5).tolist() == [[0, 1]]


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["visualise", *words])
    assert isinstance(exit_.value.code, int)
    return exit_.value.code


def test_pictures_of_a_run_go_where_its_report_finds_them(
    pretrained: Path, labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for what in ("features", "attention", "neighbours"):
        assert run(str(pretrained), "--what", what, "--num-images", "3") == 0
        path = pretrained / f"samples/{what}_000000004.png"
        assert f"wrote {path}" in capsys.readouterr().out and path.exists()
    with pytest.raises(SystemExit):
        cli.main(["report", str(pretrained), "--out", str(tmp_path / "report.html")])
    text = (tmp_path / "report.html").read_text()
    for title, num in (("Features", 2 * 3), ("Attention", 3 * 3), ("Neighbours", 6 * 3)):
        section = re.search(f"<h2>{title}</h2>(.*?)</section>", text, flags=re.DOTALL)
        assert section and section[1].count("<img ") == num
    place = tmp_path / "patch.png"
    assert run(str(pretrained), "--what", "attention", "--patch", "1", "2", "--out", str(place)) == 0
    with Image.open(place) as picture:
        assert picture.size[0] > 600


def test_training_draws_features_and_measures_blocks(tmp_path: Path, photos: Path) -> None:
    out = tmp_path / "run"
    fastmim.pretrain(**(SMALL | {"data": str(photos), "out": out, "picture_every": "100%", "report": "auto"}))
    blocks = json.loads((out / "blocks.json").read_text())
    assert blocks["step"] == 12 and [row["block"] for row in blocks["blocks"]] == [1, 2]
    text = (out / "report.html").read_text()
    assert "Mean attention distance by block" in text and "Effective rank of the patch features by block" in text


def test_from_python_a_notebook_shows_the_picture(pretrained: Path, photos: Path, tmp_path: Path) -> None:
    drawn = fastmim.visualise(pretrained, images=str(photos), out=tmp_path / "drawn.png", num_images=2)
    assert drawn._repr_png_() == (tmp_path / "drawn.png").read_bytes() and drawn.explained_variance is not None
    assert fastmim.visualise(pretrained, out=tmp_path / "drawn.jpg", num_images=1)._repr_png_() is None
    drawn = fastmim.visualise(pretrained, what="features", num_images=2)
    assert drawn.out == pretrained / "samples/features_000000004.png" and drawn.explained_variance is None
    with pytest.raises(RequestError, match="what is 'feature'; expected reconstruction or features or attention or"):
        fastmim.visualise(pretrained, what="feature")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"what": "features", "num_images": 0}, "num_images is 0; expected at least 1"),
        ({"what": "features", "patch": (0, 1)}, "patch is 0,1, but what is features; expected --what attention with"),
        ({"what": "attention", "patch": (0, 9)}, "patch is 0,9; expected a row and a column from 0 to 3"),
        ({"what": "features", "out": Path("/dev/null/x.png")}, "expected a picture file that can be written, such as"),
    ],
)
def test_refusals(pretrained: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        visualise_features(str(pretrained), **options)  # type: ignore[arg-type]


def test_images_that_are_missing_or_unreadable(pretrained: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"images are not given, and .* is no run directory; expected --images"):
        visualise_features(str(pretrained / "weights.safetensors"), what="features")
    (tmp_path / "a.jpg").write_text("no image")
    with pytest.raises(RunError, match=r"none of 1 images of .* can be read; expected images: check the files"):
        visualise_features(str(pretrained), what="features", images=str(tmp_path))
    with pytest.raises(RequestError, match="with 1 image; expected at least 2 to compare"):
        visualise_features(str(pretrained), what="neighbours", images=str(tmp_path))
    with pytest.raises(SystemExit) as exit_:
        cli.main(["visualise", str(pretrained), "--patch", "0", "1"])
    assert exit_.value.code == 2
