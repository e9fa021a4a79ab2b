"""HOG against a NumPy loop and by hand; Pixels by hand and through their inverse; random projections of them."""

from __future__ import annotations

import math
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import fastmim
from fastmim.errors import RequestError
from fastmim.method.joint import Joint
from fastmim.method.mim import MIM
from fastmim.method.targets import HOG, Pixels, RandomProjection, Target


def gradients_by_loop(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sobel gradients of one (H, W) channel, tap by tap, in float64."""
    padded = np.pad(image.astype(np.float64), 1, mode="reflect")
    kernel = [[1, 0, -1], [2, 0, -2], [1, 0, -1]]
    gx, gy = np.zeros(image.shape), np.zeros(image.shape)
    for i, j in np.ndindex(image.shape):
        for a in range(3):
            for b in range(3):
                gx[i, j] += kernel[a][b] * padded[i + a, j + b]
                gy[i, j] += kernel[b][a] * padded[i + a, j + b]
    return gx, gy


def hog_by_loop(images: np.ndarray, cell: int, num_bins: int = 9) -> np.ndarray:
    """The definition, pixel by pixel, with atan2."""
    B, C, H, W = images.shape
    out = np.zeros((B, C, num_bins, H // cell, W // cell))
    for b, c in np.ndindex(B, C):
        gx, gy = gradients_by_loop(images[b, c])
        for i, j in np.ndindex(H, W):
            k = math.floor(math.atan2(gx[i, j], gy[i, j]) / math.pi * num_bins) % num_bins
            out[b, c, k, i // cell, j // cell] += math.hypot(gx[i, j], gy[i, j])
    out /= np.maximum(np.linalg.norm(out, axis=2, keepdims=True), 1e-12)
    return out.reshape(B, C * num_bins, H // cell, W // cell)


def bins_of(image: torch.Tensor, cell: int) -> list[list[dict[int, float]]]:
    """The non-zero bins of each cell of a one-channel (H, W) image."""
    histograms = HOG(cell)(image[None, None])[0].permute(1, 2, 0).tolist()
    return [[{k: v for k, v in enumerate(h) if v} for h in row] for row in histograms]


@pytest.mark.parametrize("num_bins", [2, 9, 18])
@pytest.mark.parametrize(("shape", "cell"), [((2, 3, 16, 16), 8), ((1, 1, 25, 15), 5), ((3, 4, 6, 9), 3)])
def test_equals_the_definition(shape: tuple[int, ...], cell: int, num_bins: int) -> None:
    images = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(1)).float()
    features = HOG(cell, num_bins)(images)
    assert features.shape == (shape[0], shape[1] * num_bins, shape[2] // cell, shape[3] // cell)
    np.testing.assert_allclose(features, hog_by_loop(images.numpy(), cell, num_bins), atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_definition_on_continuous_values(seed: int) -> None:
    images = torch.randn(1, 2, 24, 24, generator=torch.Generator().manual_seed(seed))
    np.testing.assert_allclose(HOG()(images), hog_by_loop(images.numpy(), 8), atol=1e-5)


@settings(max_examples=60)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(2, 4)).flatmap(
        lambda s: st.tuples(
            st.just(s[2]), hnp.arrays(np.uint8, (1, 1, s[0] * s[2], s[1] * s[2]), elements=st.integers(0, 3))
        )
    )
)
def test_equals_the_definition_where_gradients_tie(case: tuple[int, np.ndarray]) -> None:
    """Few grey levels: many gradients are 0, vertical, horizontal or exactly diagonal."""
    cell, images = case
    np.testing.assert_allclose(HOG(cell)(torch.from_numpy(images)), hog_by_loop(images, cell), atol=1e-5)


def test_bins_equal_atan2_at_a_million_pixels() -> None:
    """Cells of one pixel are one-hot, so that every bin shows."""
    images = torch.randint(0, 256, (4, 1, 512, 512), generator=torch.Generator().manual_seed(2)).float()
    images[:2] = (images[:2] / 64).floor()
    kernel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]], dtype=torch.float64)
    kernels = torch.stack([kernel, kernel.T])[:, None]
    gx, gy = F.conv2d(F.pad(images.double(), (1, 1, 1, 1), mode="reflect"), kernels).unbind(1)
    bins = (torch.atan2(gx, gy) / math.pi * 9).floor().long() % 9
    expected = F.one_hot(bins, 9).permute(0, 3, 1, 2) * ((gx != 0) | (gy != 0))[:, None]
    features = HOG(1)(images)
    assert torch.equal(features > 0.5, expected.bool())
    torch.testing.assert_close(features, expected.float(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_edges_by_hand(sign: float) -> None:
    step = sign * torch.tensor([0.0, 0.0, 1.0, 1.0])
    assert bins_of(step.expand(4, 4), 4) == [[{4: 1.0}]]  # vertical edge: gy = 0, 90 degrees
    assert bins_of(step.expand(4, 4).T, 4) == [[{0: 1.0}]]  # horizontal edge: gx = 0, 0 degrees


def test_negative_zero_is_zero() -> None:
    image = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(4, 4).T.clone()
    image[:2, ::2] = -0.0
    assert bins_of(image, 4) == [[{0: 1.0}]]
    assert bins_of(-image, 4) == [[{0: 1.0}]]


def test_ramps_by_hand() -> None:
    """The middle cell sees no border: gradient (8, 8), 45 degrees, and (-8, 8), 135 degrees."""
    down, right = torch.meshgrid(torch.arange(9.0), torch.arange(9.0), indexing="ij")
    assert bins_of(down + right, 3)[1][1] == {2: 1.0}
    assert bins_of(down - right, 3)[1][1] == {6: 1.0}


def test_corner_by_hand() -> None:
    """A column step plus a row step: 4 pixels see either (magnitude 4), 4 see both (4 * sqrt(2), 45 degrees)."""
    step = torch.tensor([0.0, 0.0, 1.0, 1.0])
    ((histogram,),) = bins_of(step[:, None] + step[None, :], 4)
    assert histogram == pytest.approx({0: 0.5, 2: math.sqrt(0.5), 4: 0.5}, abs=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.1, 1.7, -2.1179, 255.0])
def test_flat_regions_give_zeros(value: float) -> None:
    assert not HOG()(torch.full((2, 3, 32, 32), value)).any()
    images = torch.full((1, 1, 24, 24), value)
    images[..., :8, :8] = torch.rand(8, 8, generator=torch.Generator().manual_seed(0))
    features = HOG()(images)
    assert features[..., :2, :2].any() and not features[..., 2, :].any() and not features[..., :, 2].any()


def test_histograms_have_norm_one_and_ignore_contrast() -> None:
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    features = HOG()(images)
    assert features.min() >= 0
    torch.testing.assert_close(features.unflatten(1, (3, 9)).norm(dim=2), torch.ones(2, 3, 4, 4))
    assert torch.equal(HOG()(images * 0.25), features)


def test_channels_are_ordered_by_image_channel_then_bin() -> None:
    images = torch.zeros(1, 3, 8, 8)
    images[:, 1, :, 4:] = 1
    features = HOG()(images)
    assert features.nonzero().tolist() == [[0, 9 + 4, 0, 0]]


def test_a_large_batch_equals_its_images_alone() -> None:
    images = torch.randn(7, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    assert torch.equal(HOG()(images), torch.cat([HOG()(image[None]) for image in images]))


def test_memory_layout_does_not_matter() -> None:
    images = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    channels_last = images.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(HOG()(channels_last), HOG()(images), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.uint8])
@pytest.mark.parametrize(
    "target", [HOG(4), Pixels(4), RandomProjection(4), Joint(HOG(4), Pixels(4))], ids=lambda target: target.name
)
def test_always_float32_without_gradient(target: HOG | Pixels | RandomProjection | Joint, dtype: torch.dtype) -> None:
    images = torch.randint(0, 8, (2, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = target(images.float())
    if dtype.is_floating_point:
        images.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = target(images)
    assert features.dtype == torch.float32 and not features.requires_grad
    assert torch.equal(features, expected)


def test_the_compiled_form_has_no_graph_break_and_equals_eager() -> None:
    """Without a compiler of C++, as far as the graph that inductor would compile."""
    hog, backend = HOG(), "inductor" if shutil.which("g++") else "aot_eager"
    images = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0)).float()
    compiled = torch.compile(hog, backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(images), hog(images), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("stride", "cell"), [(2, 2), (4, 4), (8, 8), (16, 8), (32, 8)])
def test_hog_cell_follows_the_stride(stride: int, cell: int) -> None:
    assert HOG().for_stride(stride).cell == cell
    assert HOG(2, num_bins=18).for_stride(stride).cell == 2
    assert HOG(2, num_bins=18).for_stride(stride).num_bins == 18


def test_pixels_patch_follows_the_stride() -> None:
    assert Pixels().for_stride(32).cell == 32
    assert Pixels(8, normalize=False).for_stride(32).cell == 8
    assert not Pixels(normalize=False).for_stride(32).normalize


def test_names_and_channels() -> None:
    assert (HOG().name, HOG().cell, HOG().num_channels(3), HOG(num_bins=18).num_channels(1)) == ("hog", 8, 27, 18)
    assert (Pixels().name, Pixels().cell, Pixels(4).num_channels(3)) == ("pixels", 16, 48)
    assert repr(HOG(4)) == "HOG(cell=4, num_bins=9)"
    assert repr(Pixels(4)) == "Pixels(patch=4, normalize=True)"


def test_pixels_by_hand() -> None:
    """A patch of 0, 1, 2, 3: mean 1.5, unbiased variance 5/3; a flat patch gives zeros."""
    images = torch.tensor([[0.0, 1.0, 7.0, 7.0], [2.0, 3.0, 7.0, 7.0]])[None, None]
    patches = Pixels(2)(images)
    assert patches.shape == (1, 4, 1, 2)
    expected = (torch.arange(4.0) - 1.5) / math.sqrt(5 / 3 + 1e-6)
    torch.testing.assert_close(patches[0, :, 0, 0], expected)
    assert not patches[0, :, 0, 1].any()


def test_pixels_channel_order() -> None:
    images = torch.arange(2.0 * 2 * 4).view(1, 2, 2, 4)
    assert Pixels(2, normalize=False)(images)[0, :, 0, 1].tolist() == [2, 3, 6, 7, 10, 11, 14, 15]


def test_pixels_are_standardised_over_pixels_and_channels() -> None:
    images = 3 + 5 * torch.randn(2, 3, 32, 16, generator=torch.Generator().manual_seed(0))
    patches = Pixels(8)(images)
    assert patches.shape == (2, 192, 4, 2)
    torch.testing.assert_close(patches.mean(1), torch.zeros(2, 4, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(patches.var(1), torch.ones(2, 4, 2))


@pytest.mark.parametrize("normalize", [True, False])
def test_to_images_is_the_inverse(normalize: bool) -> None:
    images = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    pixels = Pixels(8, normalize=normalize)
    torch.testing.assert_close(pixels.to_images(pixels(images), images), images)


@pytest.mark.parametrize(("target", "word"), [(HOG(8), "cell"), (Pixels(8), "patch")])
def test_a_side_that_does_not_divide_the_image_is_refused(target: HOG | Pixels, word: str) -> None:
    with pytest.raises(ValueError, match=f"36x32 pixels: expected multiples of the {word}, 8; resize"):
        target(torch.zeros(1, 3, 36, 32))


def test_a_side_that_does_not_divide_the_stride_is_refused() -> None:
    with pytest.raises(ValueError, match="cell is 6: expected a divisor of the backbone's stride, 16; leave it out"):
        HOG(6).for_stride(16)
    with pytest.raises(ValueError, match="patch is 16: expected a divisor of the backbone's stride, 8; leave it out"):
        Pixels(16).for_stride(8)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="cell is 0: expected at least 1 pixel"):
        HOG(0)
    with pytest.raises(ValueError, match="patch is -4: expected at least 1 pixel"):
        Pixels(-4)
    with pytest.raises(ValueError, match="num_bins is 1: a histogram needs at least 2 bins"):
        HOG(num_bins=1)
    with pytest.raises(ValueError, match=r"a patch of 1 value has no variance.*normalize=False"):
        Pixels(1)(torch.zeros(1, 1, 8, 8))


def test_a_random_projection_is_one_linear_map_of_each_standardised_patch() -> None:
    """The map is the same for every patch, call and seed, and its width for any number of channels."""
    target = RandomProjection(width=24).for_stride(4)
    assert (target.cell, target.num_channels(3), target.num_channels(13)) == (4, 24, 24)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(8, 3, 32, 32, generator=generator)
    patches = Pixels(4)(images).movedim(1, -1).reshape(-1, 48)
    projected = target(images).movedim(1, -1).reshape(-1, 24)
    solution = torch.linalg.lstsq(patches[:100], projected[:100], driver="gelsd").solution  # fitted to some patches
    torch.testing.assert_close(patches @ solution, projected, atol=1e-3, rtol=0)  # it holds for all
    assert torch.equal(target(images), RandomProjection(width=24).for_stride(4)(images))
    assert not torch.allclose(target(images), RandomProjection(width=24, seed=1).for_stride(4)(images))
    assert RandomProjection(width=24).for_stride(4)(torch.randn(2, 13, 8, 8)).shape == (2, 24, 2, 2)
    assert "patch=4, width=24, seed=0" in repr(target)


def test_a_random_projection_keeps_the_variance_and_the_angles() -> None:
    """Entries have mean 0 and variance 1 / n, so that lengths and inner products are kept on average."""
    target = RandomProjection(width=4096).for_stride(8)
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    patches, projected = (found.flatten(2).mT.flatten(0, 1) for found in (Pixels(8)(images), target(images)))
    gram, expected = projected @ projected.T / 4096, patches @ patches.T / 192
    torch.testing.assert_close(gram, expected, atol=0.08, rtol=0)
    assert abs(projected.mean()) < 0.02 and 0.9 < projected.var() < 1.1


def test_joint_targets_of_other_cells_are_laid_side_by_side() -> None:
    target = Joint(HOG(4), Pixels(8)).for_stride(16)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert (target.name, target.cell, target.num_channels(3)) == ("hog+pixels", 16, 27 * 16 + 192 * 4)
    hog, pixels = target(images).split((27 * 16, 192 * 4), 1)
    assert torch.equal(hog, F.pixel_unshuffle(HOG(4)(images), 4))
    assert torch.equal(pixels, F.pixel_unshuffle(Pixels(8)(images), 2))


def test_the_documented_target_of_ones_own_trains() -> None:
    """The example in the docstring of `Target`, as it stands there."""
    example = (Target.__doc__ or "").split("mean colour of each cell:\n\n")[1]
    code = "\n".join(line.removeprefix("        ") for line in example.splitlines())
    assert "class MeanColour:" in code
    names: dict[str, object] = {"torch": torch, "fastmim": fastmim}
    exec(code, names)
    model = names["model"]
    assert isinstance(model, MIM)
    images = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    output = model(images)
    colours = F.pixel_shuffle(output["target"], 4)
    torch.testing.assert_close(colours, F.avg_pool2d(images, 4))
    output["loss"].backward()
    assert model.decoder.head.weight.grad is not None


def test_impossible_projections_are_refused() -> None:
    with pytest.raises(ValueError, match="width is 0: expected at least 1 channel; 256 is usual"):
        RandomProjection(width=0)
    with pytest.raises(RequestError, match="patch is 6: expected a divisor of the backbone's stride, 16"):
        RandomProjection(6).for_stride(16)
    with pytest.raises(ValueError, match="images are 30x30 pixels: expected multiples of the patch, 4"):
        RandomProjection(4)(torch.zeros(1, 3, 30, 30))
