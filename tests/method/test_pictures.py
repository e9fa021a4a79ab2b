"""Pictures: strokes lie along edges, panels show what their headings say, odd values do not stop a run."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from skimage.feature import hog as skimage_hog
from torch import Tensor, nn

from fastmim.method.masking import random_mask
from fastmim.method.mim import MIM
from fastmim.method.pictures import glyphs, picture, reconstruct
from fastmim.method.targets import HOG, Pixels, Target

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def batch(num: int = 2, size: int = 64, channels: int = 3) -> Tensor:
    """Smooth noise, normalised so that de-normalised values lie in [0, 1]."""
    noise = torch.rand(num, channels, size // 8, size // 8, generator=torch.Generator().manual_seed(0))
    smooth = F.interpolate(noise, (size, size), mode="bilinear")
    mean, std = (torch.tensor((values * 2)[:channels]).view(-1, 1, 1) for values in (MEAN, STD))
    return (smooth - mean) / std


def output(images: Tensor, target: Target, *, per_side: int = 1, prediction: Tensor | None = None) -> dict[str, Tensor]:
    """The output of a model whose prediction is correct, or the one given (per cell)."""
    truth = target.forward(images)
    guess = truth if prediction is None else prediction
    rows, columns = truth.shape[-2:]
    mask = random_mask(torch.arange(len(images)), (rows // per_side, columns // per_side), 0.75)
    return {
        "prediction": F.pixel_unshuffle(guess, per_side),
        "target": F.pixel_unshuffle(truth, per_side),
        "mask": mask,
    }


def draw(images: Tensor, target: Target, out: dict[str, Tensor] | None = None, **options: object) -> Image.Image:
    channels = images.shape[1]
    out = output(images, target) if out is None else out
    return picture(images, out, target, mean=(MEAN * 2)[:channels], std=(STD * 2)[:channels], **options)


def panels(sheet: Image.Image, *, rows: int, columns: int) -> np.ndarray:
    """The picture's images, (rows, columns, height, width, 3): margins of 16, gaps of 8, below the headings."""
    pixels = np.asarray(sheet)
    width = (sheet.width - 32 + 8) // columns - 8
    height = (sheet.height - 92 - 16 + 8) // rows - 8
    starts = [[(92 + r * (height + 8), 16 + c * (width + 8)) for c in range(columns)] for r in range(rows)]
    return np.array([[pixels[y : y + height, x : x + width] for y, x in row] for row in starts])


def direction(glyph: np.ndarray) -> float:
    """Degrees in [0, 180) from the horizontal, counter-clockwise, of the bright pixels' long axis."""
    down, right = np.mgrid[: glyph.shape[0], : glyph.shape[1]] - (np.array(glyph.shape) - 1).reshape(2, 1, 1) / 2
    up = -down
    xx, yy, xy = ((glyph * m).sum() for m in (right * right, up * up, right * up))
    return math.degrees(0.5 * math.atan2(2 * xy, xx - yy)) % 180


def apart(a: float, b: float) -> float:
    return min((a - b) % 180, (b - a) % 180)


@pytest.mark.parametrize("along", [0, 20, 40, 70, 90, 110, 140, 160])
def test_strokes_lie_along_edges_as_skimage_draws_them(along: int) -> None:
    """A ramp whose lines of equal brightness run `along` degrees, counter-clockwise from the horizontal."""
    down, right = np.mgrid[:48, :48].astype(np.float32)
    angle = math.radians(along)
    ramp = right * math.sin(angle) + down * math.cos(angle)
    strengths = HOG(16)(torch.from_numpy(ramp)[None, None])
    ours = glyphs(strengths, 16)[0, 16:32, 16:32].numpy()
    _, theirs = skimage_hog(ramp, 9, (16, 16), (1, 1), visualize=True)
    assert apart(direction(ours), along) <= 10.1  # half a bin
    assert apart(direction(ours), direction(theirs[16:32, 16:32])) <= 20.1  # half a bin each


def test_a_vertical_edge_is_a_vertical_stroke() -> None:
    image = torch.zeros(1, 1, 8, 8)
    image[..., 4:] = 1
    glyph = glyphs(HOG()(image), 17)[0]
    assert glyph[8, 8] == 1 and glyph[2:15, 8].min() == 1
    assert glyph[:, :6].max() == 0 and glyph[:, 11:].max() == 0


def test_strokes_are_as_bright_as_their_bins() -> None:
    strengths = torch.zeros(1, 9, 1, 3)
    strengths[0, 4] = torch.tensor([0.25, 3.0, -1.0])
    assert [cell.max().item() for cell in glyphs(strengths, 16)[0].split(16, dim=1)] == [0.25, 1.0, 0.0]


def test_image_and_masked_image() -> None:
    images = batch()
    out = output(images, HOG())
    shown = panels(draw(images, HOG(), out), rows=2, columns=4)
    pixels = images * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    expected = (pixels * 255).round().permute(0, 2, 3, 1).repeat_interleave(4, 1).repeat_interleave(4, 2)
    np.testing.assert_array_equal(shown[:, 0], expected)
    hidden = out["mask"].repeat_interleave(32, 1).repeat_interleave(32, 2).numpy()
    assert (shown[:, 1][hidden] == 128).all()
    np.testing.assert_array_equal(shown[:, 1][~hidden], shown[:, 0][~hidden])


def test_hog_panels_compare_the_hidden_cells() -> None:
    images = batch()
    out = output(images, HOG())
    shown = panels(draw(images, HOG(), out), rows=2, columns=4)
    hidden = out["mask"].repeat_interleave(32, 1).repeat_interleave(32, 2).numpy()
    target, prediction = shown[:, 2], shown[:, 3]
    np.testing.assert_array_equal(prediction[hidden], target[hidden])
    assert target[~hidden].max() > 200 > 120 > prediction[~hidden].max()


@pytest.mark.parametrize("target", [HOG(), Pixels(8), Pixels(8, normalize=False)], ids=repr)
def test_only_hidden_cells_of_the_prediction_count(target: HOG | Pixels) -> None:
    images = batch()
    correct = output(images, target)
    hidden = correct["mask"][:, None]
    elsewhere = correct | {"prediction": correct["prediction"].where(hidden, torch.tensor(0.7))}
    wrong = correct | {"prediction": correct["prediction"].where(~hidden, torch.tensor(0.7))}
    assert draw(images, target, elsewhere).tobytes() == draw(images, target, correct).tobytes()
    assert draw(images, target, wrong).tobytes() != draw(images, target, correct).tobytes()


@pytest.mark.parametrize("target", [HOG(), Pixels(8)], ids=repr)
def test_cells_regrouped_per_position_draw_the_same(target: HOG | Pixels) -> None:
    images = batch()
    regrouped = output(images, target, per_side=2)
    cells = output(images, target)
    cells["mask"] = regrouped["mask"].repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert draw(images, target, regrouped).tobytes() == draw(images, target, cells).tobytes()


@pytest.mark.parametrize("normalize", [True, False])
def test_a_correct_prediction_of_pixels_reconstructs_the_image(normalize: bool) -> None:
    shown = panels(draw(batch(), Pixels(8, normalize=normalize)), rows=2, columns=5).astype(int)
    assert abs(shown[:, 4] - shown[:, 0]).max() <= 1
    assert (abs(shown[:, 2] - shown[:, 0]).max() <= 1) != normalize


def test_standardised_pixels_are_drawn_around_mid_grey() -> None:
    shown = panels(draw(batch(), Pixels(8)), rows=2, columns=5)
    patches = shown[:, 2].reshape(2, 8, 32, 8, 32, 3)
    assert abs(patches.mean((2, 4, 5)) - 127.5).max() < 6


def test_a_prediction_that_is_not_a_number_is_drawn() -> None:
    images = batch()
    for target in (HOG(), Pixels(8)):
        out = output(images, target, prediction=torch.full_like(target(images), math.nan))
        assert draw(images, target, out).size == draw(images, target).size


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("target", [HOG(), Pixels(8)], ids=repr)
def test_any_number_of_channels(channels: int, target: HOG | Pixels) -> None:
    shown = panels(draw(batch(channels=channels), target), rows=2, columns=4 + (target.name == "pixels"))
    colours = len(np.unique(shown[0, 0].reshape(-1, 3) @ [65536, 256, 1]))
    greys = (shown[0, 0] == shown[0, 0][..., :1]).all()
    assert colours > 20 and greys == (channels < 3)


@pytest.mark.parametrize("size", [32, 64, 128, 192, 224, 384])
@pytest.mark.parametrize("cell", [4, 8])
def test_panels_are_legible_at_every_size(size: int, cell: int) -> None:
    sheet = draw(batch(1, size), HOG(cell))
    side = panels(sheet, rows=1, columns=4).shape[2]
    assert side % size == 0 and 224 <= side <= 768
    assert side * cell / size >= (16 if size * 16 // cell <= 768 else 8)


@pytest.mark.parametrize("target", [HOG(), Pixels(8)], ids=repr)
def test_images_need_not_be_square(target: HOG | Pixels) -> None:
    images = batch()[..., :32, :]
    shown = panels(draw(images, target), rows=2, columns=4 + (target.name == "pixels"))
    assert shown.shape[2:4] == (128, 256)
    pixels = images * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    expected = (pixels * 255).round().permute(0, 2, 3, 1).repeat_interleave(4, 1).repeat_interleave(4, 2)
    np.testing.assert_array_equal(shown[:, 0], expected)


class Colours:
    """A target of a user's own, which `picture` does not know."""

    cell = 8

    def for_stride(self, stride: int) -> Target:
        return self

    def num_channels(self, in_chans: int) -> int:
        return in_chans

    def forward(self, images: Tensor) -> Tensor:
        return F.avg_pool2d(images, self.cell)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_an_unknown_target_is_drawn_by_its_principal_components(channels: int) -> None:
    images = batch(channels=channels)
    shown = panels(draw(images, Colours()), rows=2, columns=4)
    target, prediction = shown[:, 2], shown[:, 3]
    assert (target == target[:, ::32, ::32].repeat(32, 1).repeat(32, 2)).all()
    assert len(np.unique(target[0].reshape(-1, 3), axis=0)) > 20
    assert (target == prediction).all(-1).mean() == pytest.approx(0.75, abs=0.01)
    odd = output(images, Colours(), prediction=torch.full((2, channels, 8, 8), math.nan))
    assert draw(images, Colours(), odd).size == draw(images, Colours()).size


def test_rows_are_limited_and_the_caption_stays_in_the_heading() -> None:
    images = batch(5)
    three = draw(images, HOG(), max_rows=3)
    assert panels(three, rows=3, columns=4).shape[2] == 256
    captioned = draw(images, HOG(), max_rows=3, caption="step 1,200")
    difference = np.asarray(three).astype(int) - np.asarray(captioned)
    assert difference[:40].any() and not difference[40:].any()


def test_eight_images_are_drawn_within_a_third_of_a_second() -> None:
    images = batch(8, 128)
    out = output(images, HOG())

    def seconds() -> float:
        start = time.process_time()
        draw(images, HOG(), out)
        return time.process_time() - start

    assert min(seconds() for _ in range(3)) < 0.3


def test_output_of_another_target_is_refused() -> None:
    images = batch()
    with pytest.raises(ValueError, match=r"shape \(2, 27, 8, 8\): expected 27 channels on a 16x16 grid.*pass the"):
        draw(images, HOG(4), output(images, HOG(8)))
    with pytest.raises(ValueError, match=r"expected 192 channels on a 8x8 grid"):
        draw(images, Pixels(8), output(images, HOG(8)))
    with pytest.raises(ValueError, match=r"expected 27 channels on a 4x4 grid"):
        draw(images[..., :32, :32], HOG(8), output(images, HOG(8)))


class Guess(nn.Module):
    """Predicts a constant, and checks that it runs in evaluation mode."""

    def __init__(self, *, fails: bool = False) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(0.2))
        self.frozen = nn.Dropout().eval()
        self.fails = fails

    def forward(self, images: Tensor, keys: Tensor | None = None) -> dict[str, Tensor]:
        assert not self.training and not self.frozen.training
        if self.fails:
            raise RuntimeError("out of memory")
        target = HOG()(images)
        mask = random_mask(torch.zeros(len(images), dtype=torch.int64) if keys is None else keys, (8, 8), 0.75)
        return {"prediction": self.level * torch.ones_like(target), "target": target, "mask": mask}


def test_reconstruct_runs_in_evaluation_and_restores_modes() -> None:
    model, images = Guess().train(), batch()
    model.frozen.eval()
    keys = torch.tensor([5, 7])
    out = reconstruct(model, images, keys)
    assert model.training and not model.frozen.training
    assert not out["prediction"].requires_grad
    assert torch.equal(out["mask"], random_mask(keys, (8, 8), 0.75))
    assert draw(images, HOG(), out).size == (1080, 92 + 2 * 264 - 8 + 16)


def test_reconstruct_restores_modes_after_a_failure() -> None:
    model = Guess(fails=True).train()
    with pytest.raises(RuntimeError, match="out of memory"):
        reconstruct(model, batch())
    assert model.training


@pytest.mark.parametrize("target", [HOG(), Pixels()], ids=repr)
def test_a_model_and_its_picture(target: HOG | Pixels) -> None:
    model = MIM("test_vit", img_size=64, target=target)
    images = batch()
    out = reconstruct(model, images, torch.tensor([5, 7]))
    sheet = draw(images, model.target, out)
    shown = panels(sheet, rows=2, columns=4 + (target.name == "pixels"))
    hidden = (shown[:, 1] == 128).all(-1)
    assert hidden.mean() == pytest.approx(0.75, abs=0.01)
    assert (shown[:, 2] != shown[:, 3])[hidden].any()
