"""The comparison is fair: the plain forms compute what fastmim computes, and operations are counted correctly."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fastmim.backbone import Classifier
from fastmim.bench import finetune, flops, memory
from fastmim.bench.cases import Case
from fastmim.bench.references import PlainHOG, plain, plain_layers, reference_step
from fastmim.bench.steps import Form, fastmim_step, reference, synthetic_batch
from fastmim.method.targets import HOG

VIT: dict[str, Any] = {
    "backbone": "vit_tiny_patch16_224",
    "backbone_args": {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3},
    "img_size": 32,
}
SWIN: dict[str, Any] = {
    "backbone": "swin_tiny_patch4_window7_224",
    "backbone_args": {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 3, 6)},
    "img_size": 64,
}
CONVNEXT: dict[str, Any] = {
    "backbone": "convnext_tiny",
    "backbone_args": {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)},
    "img_size": 64,
}
CASES = [
    Case(**VIT),
    Case(**VIT, masking="drop"),
    Case(**VIT, target="pixels"),
    Case(**SWIN),
    Case(**CONVNEXT),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_reference_has_the_same_loss_and_makes_the_same_step(case: Case) -> None:
    model = case.build().train()
    plainly = plain(model)
    batch = synthetic_batch(4, case.img_size, "cpu")
    images = torch.randn(4, 3, case.img_size, case.img_size, generator=torch.Generator().manual_seed(0))
    ours, theirs = (m(images, batch["keys"])["loss"].item() for m in (model, plainly))
    assert ours == pytest.approx(theirs, abs=1e-4)

    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    fastmim_step(model, batch, Form(precision="float32"))()
    loss = reference_step(plainly, batch, "float32")()
    assert loss > 0
    moved = 0.0
    for (name, p), q in zip(model.named_parameters(), plainly.parameters(), strict=True):
        moved = max(moved, (p - before[name]).abs().max().item())
        # AdamW's first step is the gradient's sign, which is arbitrary where the gradient is rounding error.
        assert ((p - q).abs() < 2e-5).float().mean() > 0.95, name
    assert moved > 5e-5


def test_the_reference_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randn(2, 3, 32, 32)
    calls: list[str] = []
    for name in ("scaled_dot_product_attention", "conv2d"):
        called = getattr(F, name)
        monkeypatch.setattr(F, name, lambda *a, name=name, called=called, **k: calls.append(name) or called(*a, **k))
    for masking in ("in-place", "drop"):
        model = Case(**VIT, masking=masking, target="pixels").build()
        plainly = plain(model)
        calls.clear()  # those of the model's dry runs
        with torch.no_grad():  # where fastmim's own form is fused
            model(images, torch.arange(2))
            assert set(calls) == {"scaled_dot_product_attention"}
            calls.clear()
            plainly(images, torch.arange(2))
        assert calls == ["conv2d"]
        calls.clear()


def test_the_plain_step_takes_every_precision() -> None:
    batch = synthetic_batch(2, 32, "cpu")
    step = {
        precision: reference_step(plain(Case(**VIT).build()), batch, precision) for precision in ("float32", "bf16")
    }
    assert step["float32"]() == pytest.approx(step["bf16"](), rel=0.02)
    assert [reference(Form(precision="bf16"), device) for device in ("cpu", "cuda:0")] == ["bf16", "fp16"]


def test_fine_tuning_has_the_same_network_and_makes_steps_alike() -> None:
    torch.manual_seed(0)
    args = {"patch_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 3}
    classifier = Classifier("vit_tiny_patch16_224", num_classes=finetune.NUM_CLASSES, args=args).train()
    plainly = plain_layers(classifier)
    images = torch.randn(2, 3, finetune.SIZE, finetune.SIZE)
    torch.testing.assert_close(plainly.eval()(images), classifier.eval()(images), atol=1e-5, rtol=0)

    before = classifier.state_dict()["model.blocks.0.attn.qkv.weight"].clone()
    batch = synthetic_batch(4, finetune.SIZE, "cpu") | {"labels": torch.arange(4)}
    loss = finetune.plain_step(plainly.train(), batch, "float32")()
    assert loss == pytest.approx(math.log(finetune.NUM_CLASSES), rel=0.01)  # the head starts near zero
    finetune.fastmim_step(classifier.train(), batch, Form(precision="float32"))()
    # AdamW's first step is the learning rate, decayed by 0.75 for each of the two layers above the first block, where
    # the gradient is well above epsilon; with a head near zero it is not everywhere.
    for network in (classifier, plainly):
        moved = (network.state_dict()["model.blocks.0.attn.qkv.weight"] - before).abs().max().item()
        assert moved == pytest.approx(1e-4 * 0.75**2, rel=0.01)


def test_the_plain_hog_is_hog() -> None:
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(PlainHOG()(images), HOG()(images), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("method", "gflop"),
    [("FastMIM 128", 11.3), ("FastMIM 128, tokens dropped", 3.0), ("MAE 224", 18.5), ("SimMIM 224", 34.0)],
)
def test_operations_of_vit_b(method: str, gflop: float) -> None:
    """The published figures, which leave out the products inside attention (up to 6 %); a multiply-add is two."""
    networks = (Case.of(method, "vit_base_patch16_224", {"depth": depth}) for depth in (1, 2))
    one, two = (flops.count_flops(network.build(), network.img_size, "cpu") for network in networks)
    forward = one + 11 * (two - one)  # all twelve blocks cost the same
    assert forward / 1e9 == pytest.approx(gflop, rel=0.06)


def test_operations_of_a_matrix_product() -> None:
    """Counted by hand: patches, two blocks of the encoder and one of the decoder, both with the class token."""

    def block(tokens: int, width: int) -> int:
        return 12 * tokens * width**2 + 2 * tokens**2 * width

    encoder = 16 * (3 * 64) * 48 + 2 * block(17, 48)
    decoder = 17 * 48 * 64 + block(17, 64) + 16 * 64 * 27
    assert flops.count_flops(Case(**VIT).build(), 32, "cpu") == 2 * (encoder + decoder)


def test_peak_memory_counts_tensors_alive_at_once() -> None:
    def run() -> torch.Tensor:
        a = torch.ones(2**18)  # 1 MiB
        a = a + 1  # both are alive for a moment
        b = a.view(2, -1)  # shares its memory
        b.add_(1)
        return (b * 2).sum()

    held = torch.ones(2**20)
    assert memory.peak_mib(run, "cpu") == pytest.approx(2, abs=0.01)
    assert memory.peak_mib(lambda: held.add_(1), "cpu") == 0
