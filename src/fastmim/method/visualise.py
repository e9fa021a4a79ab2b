"""`fastmim visualise`: a picture of what a run has learned."""

from __future__ import annotations

from pathlib import Path

from fastmim.data import sources
from fastmim.data.settings import ImageConfig
from fastmim.errors import RequestError
from fastmim.method import pictures
from fastmim.method.build import load_checkpointed, normalisation
from fastmim.method.loss import explained_variance
from fastmim.method.settings import PretrainConfig
from fastmim.system.run_directory import RunDirectory
from fastmim.training import checkpoint, opening


def visualise_run(
    run: Path,
    *,
    images: str | None = None,
    grey_range: str | None = None,
    out: Path,
    num_images: int = 8,
    seed: int = 0,
) -> float:
    """Write a picture of the predictions of a run's newest checkpoint.

    Args:
        run: Run directory.
        images: Anything that `data` takes; the run's own images if None.
        grey_range: Of their greys, as the setting `range` has it; that of the run if None.
        out: The picture file to write; its suffix sets the format.
        num_images: At most this many images are drawn.
        seed: Decides the masks.

    Returns:
        The share of the hidden blocks' variance that the predictions explain (`loss.explained_variance`).

    Raises:
        RequestError: The run, a checkpoint or images are missing, or the file cannot be written.
    """
    if num_images < 1:
        raise RequestError(f"num_images is {num_images}; expected at least 1")
    directory = RunDirectory(run)
    if directory.config.is_file() and "val_data" in (settings := directory.read_settings()):
        raise RequestError(
            f"run is {run}, a fine-tuning run, which predicts no hidden blocks; expected a pre-training run, such as "
            f"what it started from ({settings.get('weights')})"
        )
    config = directory.read_config(PretrainConfig)
    found = checkpoint.newest(directory.checkpoints)
    if found is None:
        raise RequestError(f"run is {run}, which has no checkpoint yet; expected one: wait until it saves its first")
    opening.check_config(config, found)
    model = load_checkpointed(config, found)
    decoded = ImageConfig(range=grey_range or "auto", max_pixels=config.max_pixels)
    found_images = sources.open_source(images or config.data, decoded, inherited=config.range)
    mean, std = normalisation(found)
    crops, output = pictures.predict(model, found_images, num_images=num_images, seed=seed, mean=mean, std=std)
    caption = f"{run.resolve().name}, step {found.step}"
    picture = pictures.picture(crops, output, model.target, mean=mean, std=std, caption=caption, max_rows=num_images)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        pictures.save(picture, out)
    except (OSError, ValueError) as error:
        raise RequestError(
            f"out is {out}: {error}; expected a picture file that can be written, such as x.png"
        ) from None
    return explained_variance(output["prediction"], output["target"], output["mask"])
