"""Random checkpoints in other projects' layouts, and those projects' forward passes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fastmim

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

    def pvt(self, prefix: str, *, widths: tuple[int, ...], depth: int, reductions: tuple[int, ...]) -> None:
        """PVTv2 with twice as many hidden channels as its block has."""
        for stage, (width, reduction) in enumerate(zip(widths, reductions, strict=True), start=1):
            side = 7 if stage == 1 else 3
            self(f"{prefix}patch_embed{stage}.proj.weight", width, widths[stage - 2] if stage > 1 else 3, side, side)
            self(f"{prefix}patch_embed{stage}.proj.bias", width)
            self.norm(f"{prefix}patch_embed{stage}.norm", width)
            for index in range(depth):
                name = f"{prefix}block{stage}.{index}"
                for part, outputs in (("q", width), ("kv", 2 * width), ("proj", width)):
                    self.linear(f"{name}.attn.{part}", width, outputs)
                if reduction > 1:
                    self(f"{name}.attn.sr.weight", width, width, reduction, reduction)
                    self(f"{name}.attn.sr.bias", width)
                    self.norm(f"{name}.attn.norm", width)
                self.linear(f"{name}.mlp.fc1", width, 2 * width)
                self(f"{name}.mlp.dwconv.dwconv.weight", 2 * width, 1, 3, 3)
                self(f"{name}.mlp.dwconv.dwconv.bias", 2 * width)
                self.linear(f"{name}.mlp.fc2", 2 * width, width)
                for part in ("norm1", "norm2"):
                    self.norm(f"{name}.{part}", width)
            self.norm(f"{prefix}norm{stage}", width)

    def simmim_vit(self, width: int, grid: int) -> None:
        """SimMIM's ViT of two blocks and four heads, with its decoder."""
        self("encoder.cls_token", 1, 1, width)
        self("encoder.mask_token", 1, 1, width)
        self("encoder.patch_embed.proj.weight", width, 3, 16, 16)
        self("encoder.patch_embed.proj.bias", width)
        self("encoder.rel_pos_bias.relative_position_bias_table", (2 * grid - 1) ** 2 + 3, 4)
        self.state["encoder.rel_pos_bias.relative_position_index"] = torch.zeros(grid**2 + 1, grid**2 + 1).long()
        for index in range(2):
            name = f"encoder.blocks.{index}"
            self.block(name, width)
            del self.state[f"{name}.attn.qkv.bias"]
            for part in ("attn.q_bias", "attn.v_bias", "gamma_1", "gamma_2"):
                self(f"{name}.{part}", width)
        self.norm("encoder.norm", width)
        self("decoder.0.weight", 768, width, 1, 1)
        self("decoder.0.bias", 768)

    def batch_norm(self, name: str, width: int) -> None:
        self.norm(name, width)
        self(f"{name}.running_mean", width)
        self.state[f"{name}.running_var"] = torch.rand(width, generator=self.generator) + 0.5
        self.state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    def convolution(self, name: str, inputs: int, outputs: int, side: int) -> None:
        self(f"{name}.weight", outputs, inputs, side, side)
        self(f"{name}.bias", outputs)

    def cmt(self, prefix: str, *, stem: int, widths: tuple[int, ...], heads: tuple[int, ...], side: int) -> None:
        """CMT with a block in each stage."""
        for number in (1, 2, 3):
            self.convolution(f"{prefix}stem_conv{number}", stem if number > 1 else 3, stem, 3)
            self.batch_norm(f"{prefix}stem_norm{number}", stem)
        before = stem
        for letter, width, num_heads, k in zip("abcd", widths, heads, (8, 4, 2, 1), strict=True):
            self.convolution(f"{prefix}patch_embed_{letter}.proj", before, width, 2)
            self.norm(f"{prefix}patch_embed_{letter}.norm", width)
            queries, before = (side // 4 * k // 8) ** 2, width
            self(f"{prefix}relative_pos_{letter}", num_heads, queries, queries // k**2)
            name = f"{prefix}blocks_{letter}.0"
            for part in ("norm1", "norm2"):
                self.norm(f"{name}.{part}", width)
            for part in ("q", "k", "v", "proj"):
                self.linear(f"{name}.attn.{part}", width, width)
            if k > 1:
                self.convolution(f"{name}.attn.sr.0", 1, width, k)
                self.batch_norm(f"{name}.attn.sr.1", width)
            self.convolution(f"{name}.mlp.conv1.0", width, 4 * width, 1)
            self.batch_norm(f"{name}.mlp.conv1.2", 4 * width)
            self.convolution(f"{name}.mlp.proj", 1, 4 * width, 3)
            self.batch_norm(f"{name}.mlp.proj_bn", 4 * width)
            self.convolution(f"{name}.mlp.conv2.0", 4 * width, width, 1)
            self.batch_norm(f"{name}.mlp.conv2.1", width)
            self.convolution(f"{name}.proj", 1, width, 3)


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


def pvt_forward(state: State, images: Tensor, *, prefix: str, heads: tuple[int, ...]) -> Tensor:
    """(B, D, H / 32, W / 32) of PVTv2 with the final norm."""
    x = images
    for stage, num_heads in enumerate(heads, start=1):
        embed = f"{prefix}patch_embed{stage}"
        weight = state[f"{embed}.proj.weight"]
        stride, padding = (4, 3) if stage == 1 else (2, 1)
        x = F.conv2d(x, weight, state[f"{embed}.proj.bias"], stride=stride, padding=padding)
        side = x.shape[-1]
        x = norm(state, f"{embed}.norm", x.flatten(2).transpose(1, 2), 1e-5)
        index = 0
        while (name := f"{prefix}block{stage}.{index}") + ".norm1.weight" in state:
            y = norm(state, f"{name}.norm1", x, 1e-6)
            keys = y
            if f"{name}.attn.sr.weight" in state:
                weight = state[f"{name}.attn.sr.weight"]
                planes = y.transpose(1, 2).unflatten(2, (side, side))
                planes = F.conv2d(planes, weight, state[f"{name}.attn.sr.bias"], stride=weight.shape[-1])
                keys = norm(state, f"{name}.attn.norm", planes.flatten(2).transpose(1, 2), 1e-5)
            kv = F.linear(keys, state[f"{name}.attn.kv.weight"], state[f"{name}.attn.kv.bias"]).chunk(2, dim=-1)
            q = F.linear(y, state[f"{name}.attn.q.weight"], state[f"{name}.attn.q.bias"])
            q, k, v = (t.unflatten(-1, (num_heads, -1)).transpose(1, 2) for t in (q, *kv))
            y = ((q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
            x = x + F.linear(y, state[f"{name}.attn.proj.weight"], state[f"{name}.attn.proj.bias"])
            y = norm(state, f"{name}.norm2", x, 1e-6)
            y = F.linear(y, state[f"{name}.mlp.fc1.weight"], state[f"{name}.mlp.fc1.bias"])
            planes = y.transpose(1, 2).unflatten(2, (side, side))
            weight, bias = (state[f"{name}.mlp.dwconv.dwconv.{part}"] for part in ("weight", "bias"))
            y = F.conv2d(planes, weight, bias, padding=1, groups=len(weight)).flatten(2).transpose(1, 2)
            x = x + F.linear(F.gelu(y), state[f"{name}.mlp.fc2.weight"], state[f"{name}.mlp.fc2.bias"])
            index += 1
        x = norm(state, f"{prefix}norm{stage}", x, 1e-6).transpose(1, 2).unflatten(2, (side, side))
    return x


def batch_norm(state: State, name: str, x: Tensor) -> Tensor:
    mean, var, weight, bias = (state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(x, mean, var, weight, bias, eps=1e-5)


def convolve(state: State, name: str, x: Tensor, **options: int) -> Tensor:
    weight = state[f"{name}.weight"]
    return F.conv2d(x, weight, state[f"{name}.bias"], groups=x.shape[1] // weight.shape[1], **options)


def cmt_forward(state: State, images: Tensor, *, prefix: str, heads: tuple[int, ...]) -> Tensor:
    """(B, D, H / 32, W / 32) of CMT with a block in each stage, without a final norm."""
    x = images
    for number in (1, 2, 3):
        x = convolve(state, f"{prefix}stem_conv{number}", x, stride=2 if number == 1 else 1, padding=1)
        x = batch_norm(state, f"{prefix}stem_norm{number}", F.gelu(x))
    for letter, num_heads, k in zip("abcd", heads, (8, 4, 2, 1), strict=True):
        x = convolve(state, f"{prefix}patch_embed_{letter}.proj", x, stride=2)
        x = norm(state, f"{prefix}patch_embed_{letter}.norm", x.movedim(1, -1), 1e-5).movedim(-1, 1)
        name = f"{prefix}blocks_{letter}.0"
        x = x + convolve(state, f"{name}.proj", x, padding=1)
        y = norm(state, f"{name}.norm1", x.movedim(1, -1), 1e-6).movedim(-1, 1)
        keys = batch_norm(state, f"{name}.attn.sr.1", convolve(state, f"{name}.attn.sr.0", y, stride=k)) if k > 1 else y
        sources = {"q": y, "k": keys, "v": keys}
        q, k_, v = (
            F.linear(s.flatten(2).transpose(1, 2), state[f"{name}.attn.{p}.weight"], state[f"{name}.attn.{p}.bias"])
            .unflatten(-1, (num_heads, -1))
            .transpose(1, 2)
            for p, s in sources.items()
        )
        weights = (q @ k_.transpose(-1, -2) / q.shape[-1] ** 0.5 + state[f"{prefix}relative_pos_{letter}"]).softmax(-1)
        y = (weights @ v).transpose(1, 2).flatten(2)
        y = F.linear(y, state[f"{name}.attn.proj.weight"], state[f"{name}.attn.proj.bias"])
        x = x + y.transpose(1, 2).reshape(x.shape)
        y = norm(state, f"{name}.norm2", x.movedim(1, -1), 1e-6).movedim(-1, 1)
        y = batch_norm(state, f"{name}.mlp.conv1.2", F.gelu(convolve(state, f"{name}.mlp.conv1.0", y)))
        y = y + convolve(state, f"{name}.mlp.proj", y, padding=1)
        y = batch_norm(state, f"{name}.mlp.proj_bn", F.gelu(y))
        x = x + batch_norm(state, f"{name}.mlp.conv2.1", convolve(state, f"{name}.mlp.conv2.0", y))
    return x


def features_of(converted: Any, images: Tensor) -> Tensor:
    model: Any = fastmim.load_backbone(converted.path).eval()
    with torch.no_grad():
        return model.forward_features(images)
