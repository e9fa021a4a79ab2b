"""Other projects' checkpoints: written here by hand in each layout, and computed here as those projects compute."""

from __future__ import annotations

import argparse
import collections
import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

import fastmim
from fastmim import Backbone, RequestError, cli, layouts, weights

State = dict[str, Tensor]


class Maker:
    """Random tensors of given names and shapes."""

    def __init__(self) -> None:
        self.state: State = {}
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, name: str, *shape: int) -> None:
        scale = 0.1 if len(shape) > 1 else 0.3
        self.state[name] = torch.randn(shape, generator=self.generator) * scale

    def linear(self, name: str, inputs: int, outputs: int, *, bias: bool = True) -> None:
        self(f"{name}.weight", outputs, inputs)
        if bias:
            self(f"{name}.bias", outputs)

    def norm(self, name: str, width: int) -> None:
        self(f"{name}.weight", width)
        self(f"{name}.bias", width)

    def block(self, name: str, width: int) -> None:
        self.norm(f"{name}.norm1", width)
        self.linear(f"{name}.attn.qkv", width, 3 * width)
        self.linear(f"{name}.attn.proj", width, width)
        self.norm(f"{name}.norm2", width)
        self.linear(f"{name}.mlp.fc1", width, 4 * width)
        self.linear(f"{name}.mlp.fc2", 4 * width, width)

    def vit(self, *, width: int, depth: int, grid: int, patch: int = 16) -> None:
        self("cls_token", 1, 1, width)
        self("pos_embed", 1, grid * grid + 1, width)
        self("patch_embed.proj.weight", width, 3, patch, patch)
        self("patch_embed.proj.bias", width)
        for index in range(depth):
            self.block(f"blocks.{index}", width)
        self.norm("norm", width)

    def decoder(self, width: int, inner: int, outputs: int) -> None:
        self.linear("decoder_embed", width, inner)
        self.block("decoder_blocks.0", inner)
        self.norm("decoder_norm", inner)
        self.linear("decoder_pred", inner, outputs)

    def swin(
        self, prefix: str, *, width: int, depths: tuple[int, ...], heads: tuple[int, ...], window: int, side: int
    ) -> None:
        self(f"{prefix}patch_embed.proj.weight", width, 3, 4, 4)
        self(f"{prefix}patch_embed.proj.bias", width)
        self.norm(f"{prefix}patch_embed.norm", width)
        for stage, depth in enumerate(depths):
            dim, here = width * 2**stage, side // 4 // 2**stage
            for index in range(depth):
                name = f"{prefix}layers.{stage}.blocks.{index}"
                self.block(name, dim)
                self(f"{name}.attn.relative_position_bias_table", (2 * window - 1) ** 2, heads[stage])
                self.state[f"{name}.attn.relative_position_index"] = relative_index(window)
                if index % 2 and here > window:
                    self.state[f"{name}.attn_mask"] = shift_mask(here, window)
            if stage + 1 < len(depths):
                self.linear(f"{prefix}layers.{stage}.downsample.reduction", 4 * dim, 2 * dim, bias=False)
                self.norm(f"{prefix}layers.{stage}.downsample.norm", 4 * dim)
        self.norm(f"{prefix}norm", width * 2 ** (len(depths) - 1))


# The foreign forward passes, from their papers


def norm(state: State, name: str, x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def mlp(state: State, name: str, x: Tensor) -> Tensor:
    x = F.gelu(F.linear(x, state[f"{name}.fc1.weight"], state[f"{name}.fc1.bias"]))
    return F.linear(x, state[f"{name}.fc2.weight"], state[f"{name}.fc2.bias"])


def attend(state: State, name: str, x: Tensor, heads: int, bias: Tensor | float = 0.0) -> Tensor:
    """Multi-head self-attention of (B, N, D) with `bias` on the logits."""
    if f"{name}.q_bias" in state:
        zeros = torch.zeros_like(state[f"{name}.q_bias"])
        qkv_bias = torch.cat([state[f"{name}.q_bias"], zeros, state[f"{name}.v_bias"]])
    else:
        qkv_bias = state[f"{name}.qkv.bias"]
    q, k, v = F.linear(x, state[f"{name}.qkv.weight"], qkv_bias).chunk(3, dim=-1)
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + bias).softmax(-1)
    x = (weights @ v).transpose(1, 2).flatten(2)
    return F.linear(x, state[f"{name}.proj.weight"], state[f"{name}.proj.bias"])


def tokens(state: State, images: Tensor, prefix: str = "") -> Tensor:
    weight = state[f"{prefix}patch_embed.proj.weight"]
    maps = F.conv2d(images, weight, state[f"{prefix}patch_embed.proj.bias"], stride=weight.shape[-1])
    return maps.flatten(2).transpose(1, 2)


def vit_forward(state: State, images: Tensor, heads: int) -> Tensor:
    """(B, 1 + N, D) of MAE's and FastMIM's encoder on whole images."""
    x = torch.cat([state["cls_token"].expand(len(images), -1, -1), tokens(state, images)], dim=1) + state["pos_embed"]
    for index in range(sum(name.endswith("norm1.weight") and name.startswith("blocks.") for name in state)):
        name = f"blocks.{index}"
        x = x + attend(state, f"{name}.attn", norm(state, f"{name}.norm1", x, 1e-6), heads)
        x = x + mlp(state, f"{name}.mlp", norm(state, f"{name}.norm2", x, 1e-6))
    return norm(state, "norm", x, 1e-6)


def relative_index(window: int) -> Tensor:
    """(w * w, w * w) rows of the table, by offset."""
    y, x = (axis.flatten() for axis in torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij"))
    dy, dx = y[:, None] - y[None] + window - 1, x[:, None] - x[None] + window - 1
    return dy * (2 * window - 1) + dx


def to_windows(x: Tensor, window: int) -> Tensor:
    """(B, H, W, D) -> (B, number of windows, w * w, D)."""
    B, H, W, D = x.shape
    x = x.reshape(B, H // window, window, W // window, window, D).transpose(2, 3)
    return x.reshape(B, (H // window) * (W // window), window * window, D)


def shift_mask(side: int, window: int) -> Tensor:
    """(number of windows, w * w, w * w): -100 between pixels that only the cyclic shift brought together."""
    region = torch.zeros(side)
    region[-window:] = 1
    region[-(window // 2) :] = 2
    regions = to_windows((3 * region[:, None] + region[None])[None, :, :, None], window)[0, :, :, 0]
    return (regions[:, :, None] != regions[:, None]) * -100.0


def swin_forward(state: State, images: Tensor, *, prefix: str, heads: tuple[int, ...], window: int) -> Tensor:
    """(B, H, W, D), the normalised last map of the original Swin."""
    side = images.shape[-1] // 4
    x = norm(state, f"{prefix}patch_embed.norm", tokens(state, images, prefix), 1e-5).unflatten(1, (side, side))
    for stage, num_heads in enumerate(heads):
        index = 0
        while (name := f"{prefix}layers.{stage}.blocks.{index}") + ".norm1.weight" in state:
            shift = window // 2 if index % 2 and side > window else 0
            table = state[f"{name}.attn.relative_position_bias_table"][relative_index(window)]  # (w*w, w*w, heads)
            bias = table.movedim(-1, 0)[None]
            if shift:
                bias = bias + shift_mask(side, window)[:, None]
            y = norm(state, f"{name}.norm1", x, 1e-5).roll((-shift, -shift), (1, 2))
            y = to_windows(y, window)
            outputs = [attend(state, f"{name}.attn", one, num_heads, bias) for one in y]  # an image at a time
            y = torch.stack(outputs).unflatten(1, (side // window, -1)).unflatten(3, (window, window))
            x = x + y.transpose(2, 3).reshape(x.shape).roll((shift, shift), (1, 2))
            x = x + mlp(state, f"{name}.mlp", norm(state, f"{name}.norm2", x, 1e-5))
            index += 1
        merge = f"{prefix}layers.{stage}.downsample"
        if f"{merge}.norm.weight" in state:
            x = torch.cat([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], dim=-1)
            x = F.linear(norm(state, f"{merge}.norm", x, 1e-5), state[f"{merge}.reduction.weight"])
            side //= 2
    return norm(state, f"{prefix}norm", x, 1e-5)


def simmim_vit_forward(state: State, images: Tensor, heads: int) -> Tensor:
    """(B, 1 + N, D) of SimMIM's ViT: no position embedding, one table of biases for all blocks, layer scale."""
    x = torch.cat([state["encoder.cls_token"].expand(len(images), -1, -1), tokens(state, images, "encoder.")], dim=1)
    table = state["encoder.rel_pos_bias.relative_position_bias_table"]
    grid = round((x.shape[1] - 1) ** 0.5)
    index = torch.full((grid**2 + 1, grid**2 + 1), len(table) - 3)  # class token to all
    index[:, 0] = len(table) - 2  # all to class token
    index[0, 0] = len(table) - 1
    index[1:, 1:] = relative_index(grid)
    bias = table[index].movedim(-1, 0)
    for number in range(2):
        name = f"encoder.blocks.{number}"
        y = attend(state, f"{name}.attn", norm(state, f"{name}.norm1", x, 1e-6), heads, bias)
        x = x + state[f"{name}.gamma_1"] * y
        x = x + state[f"{name}.gamma_2"] * mlp(state, f"{name}.mlp", norm(state, f"{name}.norm2", x, 1e-6))
    return norm(state, "encoder.norm", x, 1e-6)


def features_of(converted: Any, images: Tensor) -> Tensor:
    model: Any = fastmim.load_backbone(converted.path).eval()
    with torch.no_grad():
        return model.forward_features(images)


# The layouts


def test_fastmim_vit_keeps_its_six_heads(tmp_path: Path) -> None:
    make = Maker()
    make.vit(width=192, depth=2, grid=4)
    make.decoder(192, 64, 108)
    make("mask_token", 1, 3, 1, 1)
    file, out = tmp_path / "checkpoint-799.pth", tmp_path / "w.safetensors"
    arguments = argparse.Namespace(model="mim_vit_base", mask_ratio=0.75)
    torch.save({"model": make.state, "optimizer": {"state": {}}, "epoch": 799, "args": arguments}, file)
    result = fastmim.convert(file, out=out, backbone="vit_tiny_patch16_224", backbone_args={"depth": 2})
    assert (result.method, result.arguments, result.img_size) == ("FastMIM", {"num_heads": 6, "depth": 2}, 64)
    assert result.left == ("optimizer", "epoch", "args")
    assert {name.partition(".")[0] for name in result.dropped} == {
        "mask_token", "decoder_embed", "decoder_blocks", "decoder_norm", "decoder_pred",
    }  # fmt: skip
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(features_of(result, images), vit_forward(make.state, images, 6), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(features_of(result, images), vit_forward(make.state, images, 3), atol=1e-2)
    assert "num_heads 6" in result.describe() and "with 12 is refused" in result.describe()
    with pytest.raises(RequestError, match="num_heads 6, not by default"):
        fastmim.load_backbone(out, backbone_args={"depth": 2})
    weights.load_into(Backbone("vit_tiny_patch16_224", img_size=96, args={"num_heads": 6, "depth": 2}), out)


@pytest.mark.parametrize("with_decoder", [True, False])
def test_mae_is_found_without_being_named(tmp_path: Path, with_decoder: bool) -> None:
    make = Maker()
    make.vit(width=192, depth=12, grid=14)
    if with_decoder:
        make.decoder(192, 64, 768)
        make("mask_token", 1, 1, 64)
        make("decoder_pos_embed", 1, 197, 64)
    torch.save({"model": make.state}, tmp_path / "mae.pth")
    result = fastmim.convert(tmp_path / "mae.pth", out=tmp_path / "w.safetensors")
    assert (result.backbone, result.arguments, result.img_size) == ("vit_tiny_patch16_224", {}, 224)
    assert result.mean == (0.485, 0.456, 0.406) and bool(result.dropped) == with_decoder
    images = torch.randn(1, 3, 224, 224)
    expected = vit_forward(make.state, images, 3)
    torch.testing.assert_close(features_of(result, images), expected, rtol=1e-4, atol=1e-4)
    timm.create_model("vit_tiny_patch16_224", checkpoint_path=str(result.path))


@pytest.mark.parametrize("method", ["FastMIM", "SimMIM"])
def test_swin_gives_the_features_of_the_original(tmp_path: Path, method: str) -> None:
    make = Maker()
    heads, window, side = (2, 4, 8), 2, 32
    make.swin("encoder.", width=32, depths=(2, 2, 2), heads=heads, window=window, side=side)
    if method == "FastMIM":
        make.decoder(128, 64, 108)
        make("mask_token", 1, 3, 1, 1)
    else:
        make("encoder.mask_token", 1, 1, 32)
        make("decoder.0.weight", 3 * 16 * 16, 128, 1, 1)
        make("decoder.0.bias", 3 * 16 * 16)
    torch.save({"model": {f"module.{name}": tensor for name, tensor in make.state.items()}}, tmp_path / "c.pth")
    given = {"embed_dim": 32, "depths": [2, 2, 2], "num_heads": list(heads)}
    result = fastmim.convert(
        tmp_path / "c.pth", out=tmp_path / "w.safetensors", backbone="swin_tiny_patch4_window7_224", backbone_args=given
    )
    assert (result.method, result.img_size) == (method, side) and result.arguments == given | {"window_size": window}
    images = torch.randn(2, 3, side, side)
    expected = swin_forward(make.state, images, prefix="encoder.", heads=heads, window=window)
    torch.testing.assert_close(features_of(result, images), expected, rtol=1e-4, atol=1e-5)
    weights.load_into(Backbone("swin_tiny_patch4_window7_224", img_size=side, args=result.arguments), result.path)


def test_simmim_vit_gives_the_features_of_the_original(tmp_path: Path) -> None:
    make, width, grid = Maker(), 64, 3
    make("encoder.cls_token", 1, 1, width)
    make("encoder.mask_token", 1, 1, width)
    make("encoder.patch_embed.proj.weight", width, 3, 16, 16)
    make("encoder.patch_embed.proj.bias", width)
    make("encoder.rel_pos_bias.relative_position_bias_table", (2 * grid - 1) ** 2 + 3, 4)
    make.state["encoder.rel_pos_bias.relative_position_index"] = torch.zeros(grid**2 + 1, grid**2 + 1).long()
    for index in range(2):
        name = f"encoder.blocks.{index}"
        make.block(name, width)
        del make.state[f"{name}.attn.qkv.bias"]
        for part in ("attn.q_bias", "attn.v_bias", "gamma_1", "gamma_2"):
            make(f"{name}.{part}", width)
    make.norm("encoder.norm", width)
    make("decoder.0.weight", 768, width, 1, 1)
    make("decoder.0.bias", 768)
    torch.save({"model": make.state}, tmp_path / "c.pth")
    given = {"embed_dim": width, "depth": 2, "num_heads": 4}
    result = fastmim.convert(
        tmp_path / "c.pth", out=tmp_path / "w.safetensors", backbone="beit_base_patch16_224", backbone_args=given
    )
    assert result.img_size == grid * 16 and result.arguments["use_shared_rel_pos_bias"]
    images = torch.randn(2, 3, 48, 48)
    expected = simmim_vit_forward(make.state, images, 4)
    torch.testing.assert_close(features_of(result, images), expected, rtol=1e-4, atol=1e-5)


def meta(name: str, **arguments: Any) -> State:
    """The published checkpoints' shapes, without values."""
    with torch.device("meta"):
        return timm.create_model(name, num_classes=0, **arguments).state_dict()


@pytest.mark.parametrize(
    "published", ["mae-b", "mae-l", "mae-h", "fastmim-vit-b", "fastmim-swin-b", "simmim-swin-b", "simmim-vit-b"]
)
def test_the_published_checkpoints_are_recognised(published: str) -> None:
    method, _, model = published.partition("-")
    pixels = torch.zeros(1, 3, 1, 1)
    size = 128 if method == "fastmim" else 192 if published == "simmim-swin-b" else 224
    if "swin" in model:
        window = size // 32
        state = meta("swin_base_patch4_window7_224", img_size=size, window_size=window)
        state = {f"encoder.{name}": tensor for name, tensor in state.items()}
        for stage in (1, 2, 3):  # the original ends a stage with what begins timm's next
            for part in ("norm.weight", "norm.bias", "reduction.weight"):
                tensor = state.pop(f"encoder.layers.{stage}.downsample.{part}")
                state[f"encoder.layers.{stage - 1}.downsample.{part}"] = tensor
        state["encoder.layers.0.blocks.1.attn_mask"] = torch.zeros((size // 4 // window) ** 2, window**2, window**2)
        expected = ("swin_base_patch4_window7_224", {"window_size": window}, size)
        state |= {"mask_token": pixels} if method == "fastmim" else {"encoder.mask_token": torch.zeros(1, 1, 128)}
    elif published == "simmim-vit-b":
        shared = {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True, "use_fc_norm": False}
        state = {f"encoder.{name}": tensor for name, tensor in meta("beit_base_patch16_224", **shared).items()}
        state["encoder.mask_token"] = torch.zeros(1, 1, 768)
        expected = ("beit_base_patch16_224", shared, 224)
    else:
        full = {"b": "vit_base_patch16_224", "l": "vit_large_patch16_224", "h": "vit_huge_patch14_224"}[model[-1]]
        state = meta(full, img_size=size)
        expected = (full, {"num_heads": 6} if method == "fastmim" else {}, size)
        state |= {"mask_token": pixels} if method == "fastmim" else {}
    layout = layouts.recognise(state)
    tensors, _ = layouts.split(state, layout)
    target = layouts.locate(tensors, state, layout, name=None, arguments={})
    assert (target.name, target.arguments, target.img_size) == expected
    at_size = {"img_size": size} if "patch" in target.name else {}
    named = meta(target.name, **at_size, **target.arguments)
    assert {name: tensor.shape for name, tensor in tensors.items()} == {n: t.shape for n, t in named.items()}


def test_any_timm_state_dict_with_its_own_normalisation(tmp_path: Path) -> None:
    model = timm.create_model("pvt_v2_b0")
    torch.save(model.state_dict(), tmp_path / "pvt.pth")
    result = fastmim.convert(tmp_path / "pvt.pth", out=tmp_path / "w.safetensors", backbone="pvt_v2_b0")
    assert result.method == "timm" and result.dropped == ("head.weight", "head.bias")
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(features_of(result, images), model.eval().forward_features(images))

    model = timm.create_model("resnet18").half()  # batch norm's counters are integers
    torch.save({"state_dict": model.state_dict()}, tmp_path / "r.pth")
    result = fastmim.convert(tmp_path / "r.pth", out=tmp_path / "r.safetensors", backbone="resnet18.a1_in1k")
    assert result.mean == (0.485, 0.456, 0.406)
    assert all(t.dtype in (torch.float32, torch.int64) for t in weights.read(result.path)[0].values())


# Bad input


def small_vit(tmp_path: Path, **more: Any) -> dict[str, Any]:
    """Arguments of a conversion that works; `more` is added to the checkpoint's tensors, or takes them away (None)."""
    make = Maker()
    make.vit(width=48, depth=2, grid=4)
    state = {name: tensor for name, tensor in (make.state | more).items() if tensor is not None}
    torch.save({"model": state}, tmp_path / "c.pth")
    return {
        "file": tmp_path / "c.pth",
        "out": tmp_path / "w.safetensors",
        "backbone": "vit_tiny_patch16_224",
        "backbone_args": {"embed_dim": 48, "depth": 2},
    }


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"adapter.weight": torch.zeros(1), "adapter.bias": torch.zeros(1)},
            "unknown keys adapter.weight, adapter.bias;",
        ),
        ({"norm.weight": None}, r"missing keys norm\.weight;"),
        ({"norm.weight": torch.zeros(7)}, r"other shapes norm\.weight \(7,\) instead of \(48,\);"),
        ({f"extra.{i}": torch.zeros(1) for i in range(12)}, r"extra\.7 and 4 more;"),
        (
            {"fc_norm.weight": torch.zeros(48), "norm.weight": None},
            "unknown keys fc_norm.weight; missing keys norm.weight",
        ),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=rf"is not vit_tiny_patch16_224 with .*{message}") as refusal:
        fastmim.convert(**small_vit(tmp_path, **more))
    assert "\n" not in str(refusal.value) and [p.name for p in tmp_path.iterdir()] == ["c.pth"]


class RunsCode:
    def __reduce__(self) -> Any:
        return (exec, ("import pathlib; pathlib.Path('it_ran').touch()",))


def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = small_vit(tmp_path)
    torch.save({"model": {}, "args": RunsCode()}, "c.pth")
    with pytest.raises(RequestError, match=r"a pickle that holds exec; .*nothing was run"):
        fastmim.convert(**settings)
    Path("c.pth").write_bytes(pickle.dumps(RunsCode()))  # a bare pickle, not PyTorch's archive
    with pytest.raises(RequestError, match=r"exec|damaged or no PyTorch checkpoint"):
        fastmim.convert(**settings)
    Path("c.pth").write_bytes(pickle.dumps({"model": argparse.Namespace(inner=RunsCode())}, protocol=2))
    with pytest.raises(RequestError, match=r"exec|damaged or no PyTorch checkpoint"):
        fastmim.convert(**settings)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.pth"]


def test_no_class_but_namespace_is_loaded(tmp_path: Path) -> None:
    settings = small_vit(tmp_path)
    state = torch.load(settings["file"])["model"]
    torch.save({"model": collections.OrderedDict(state), "args": argparse.Namespace(lr=1e-3)}, settings["file"])
    assert fastmim.convert(**settings).left == ("args",)
    torch.save({"model": state, "config": Path("a")}, settings["file"])
    with pytest.raises(RequestError, match=r"holds pathlib\.PosixPath; expected tensors, plain values and argparse"):
        fastmim.convert(**(settings | {"overwrite": True}))
    # What was allowed here is allowed nowhere else.
    torch.save(argparse.Namespace(), settings["file"])
    with pytest.raises(pickle.UnpicklingError):
        torch.load(settings["file"], weights_only=True)


def test_other_files_are_refused(tmp_path: Path) -> None:
    settings = small_vit(tmp_path)
    file = settings["file"]
    whole = file.read_bytes()
    for content in (b"", b"not a checkpoint", whole[: len(whole) // 2]):
        file.write_bytes(content)
        with pytest.raises(RequestError, match=r"damaged or no PyTorch checkpoint.*download it again"):
            fastmim.convert(**settings)
    torch.save({"epoch": 3}, file)
    with pytest.raises(RequestError, match=r"which holds epoch; expected tensors by name"):
        fastmim.convert(**settings)
    torch.save([torch.zeros(1)], file)
    with pytest.raises(RequestError, match=r"which holds list; expected tensors by name"):
        fastmim.convert(**settings)
    with pytest.raises(RequestError, match=r"file is .*nothing\.pth; expected a checkpoint"):
        fastmim.convert(tmp_path / "nothing.pth", out=settings["out"])
    with pytest.raises(RequestError, match=r"expected a file ending in \.safetensors"):
        fastmim.convert(file, out=tmp_path / "w.pth")
    (tmp_path / "cut.safetensors").write_bytes(b"x" * 20)
    with pytest.raises(RequestError, match=r"which is damaged: "):
        fastmim.convert(tmp_path / "cut.safetensors", out=settings["out"])
    torch.save({"model": timm.create_model("convnext_atto").state_dict()}, file)
    with pytest.raises(
        RequestError, match=r"is no ViT or Swin of a known size; expected its timm name: --backbone NAME"
    ):
        fastmim.convert(file, out=settings["out"])


def test_what_is_there_is_not_replaced_unasked(tmp_path: Path) -> None:
    settings = small_vit(tmp_path)
    result = fastmim.convert(**settings)
    with pytest.raises(RequestError, match=r"which exists; expected a path that is free: take another, or --overwrite"):
        fastmim.convert(**settings)
    fastmim.convert(**settings, overwrite=True)
    with pytest.raises(RequestError, match="a fastmim weights file already: use it as it is"):
        fastmim.convert(result.path, out=tmp_path / "again.safetensors")
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match=r"expected a file that can be written"):
        fastmim.convert(**(settings | {"out": tmp_path / "file" / "w.safetensors"}))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = small_vit(tmp_path)
    words = ["convert", str(settings["file"]), "--out", str(settings["out"]), "--backbone", settings["backbone"]]
    words += ["--backbone-args.embed_dim", "48", "--backbone-args.depth"]
    with pytest.raises(SystemExit, match="0"):
        cli.main([*words, "2"])
    said = capsys.readouterr().out
    assert "trained at 64 px" in said and "equal to the bit" in said
    with pytest.raises(SystemExit, match="2"):
        cli.main([*words, "3", "--overwrite"])
    refused = capsys.readouterr().err
    assert refused.count("\n") == 1 and "missing keys blocks.2" in refused
