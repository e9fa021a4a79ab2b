"""From the string that `--data` takes to a Source, which gives encoded bytes or pixels by index."""

from __future__ import annotations

import os
import shlex
from difflib import get_close_matches
from pathlib import Path
from urllib.parse import parse_qsl

from fastmim.data.settings import ImageConfig
from fastmim.data.sources import huggingface, torchvision_datasets
from fastmim.data.sources.folder import scan
from fastmim.data.sources.image_list import read_list
from fastmim.data.sources.objects import SCHEME as PYTHON
from fastmim.data.sources.objects import Given, open_given
from fastmim.data.sources.pack import is_packed, open_packed
from fastmim.data.sources.samples import SCHEME as SAMPLES
from fastmim.data.sources.samples import open_samples
from fastmim.data.sources.sampling import decoded_as
from fastmim.data.sources.source import Source
from fastmim.data.sources.tar_patterns import find_shards
from fastmim.data.sources.tar_shards import open_shards
from fastmim.errors import RequestError
from fastmim.system.files import exists, expanded, is_folder

_ACCEPTED = (
    "a directory of images or a pack of them, .tar shards such as 'shards/{000..127}.tar', a .txt, .csv or .tsv list "
    "of paths, samples, hf://OWNER/NAME, or torchvision://NAME"
)
_USUAL = ImageConfig()
_LISTS = {".txt", ".csv", ".tsv"}


def open_source(
    data: str,
    config: ImageConfig = _USUAL,
    *,
    inherited: str | None = None,
    cache_dir: Path | None = None,
) -> Source:
    """Open a source of images.

    If its greys have more than 8 bits and no range is known, it is measured over a sample of the images.

    Args:
        data: "samples" (or "samples://coffee,rocket" for some of the photographs),
            "torchvision://NAME?split=test&root=/path", "hf://owner/name?split=test&column=image", a directory of images
            or one that `fastmim pack` made, tar shards ("shards/{000..127}.tar", "shards/*.tar", one .tar, or a
            directory that holds nothing else), or a .txt, .csv or .tsv list. Write "./samples" for a directory called
            samples. Or a `Given`, which stands for a dataset or a list of images in memory.
        config: How images are decoded.
        inherited: The range of the weights that the images are for; see `sampling.decoded_as`.
        cache_dir: For indices of directories and for downloads; $XDG_CACHE_HOME/fastmim or ~/.cache/fastmim
            if None.

    Returns:
        A source of at least one image.

    Raises:
        RequestError: The source does not exist, or holds no images.
        RunError: A dataset could not be fetched.
    """
    if cache_dir is None:
        cache_dir = expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "fastmim"
    return decoded_as(_find(data, cache_dir), config, inherited=inherited)


def _find(data: str, cache_dir: Path) -> Source:
    if isinstance(data, Given):
        return open_given(data)
    if data == SAMPLES:
        return open_samples()
    scheme, separator, rest = data.partition("://")
    if separator and scheme == SAMPLES and rest:
        return open_samples(rest)
    if separator and scheme == PYTHON:
        raise RequestError(
            f"--data {data} stands for images that a Python program had in memory; expected the same call from Python "
            f"with the same images, or others, such as --data photos/"
        )
    if separator and scheme == "torchvision":
        name, options = _parse(rest, torchvision_datasets.OPTIONS, data)
        return torchvision_datasets.open_torchvision(name, options, origin=data, cache_dir=cache_dir)
    if separator and scheme == "hf":
        return huggingface.open_huggingface(*_parse(rest, huggingface.OPTIONS, data), origin=data)
    if separator or not data:
        raise RequestError(f"--data {data or repr(data)} is not understood; expected {_ACCEPTED}")
    path = expanded(data)
    if is_folder(path) and is_packed(path):
        return open_packed(path, origin=data)
    if shards := find_shards(data):
        return open_shards(shards, origin=data, cache_dir=cache_dir)
    if is_folder(path):
        return scan(path, origin=data, cache_dir=cache_dir)
    if exists(path) and path.is_file() and path.suffix.lower() in _LISTS:
        return read_list(path, origin=data)
    if exists(path):
        raise RequestError(f"--data {data} is a file, not a list of images; expected {_ACCEPTED}")
    raise RequestError(f"--data {data}: {_what_is_missing(path)} expected {_ACCEPTED}")


def _parse(request: str, known: tuple[str, ...], data: str) -> tuple[str, dict[str, str]]:
    """Split "name?option=value&..." into the name and its options."""
    name, _, query = request.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    if unknown := options.keys() - set(known):
        *most, last = (f"{option}=..." for option in known)
        raise RequestError(f"--data {data}: {unknown.pop()!r} is not an option; expected {', '.join(most)} or {last}")
    return name, options


def _what_is_missing(path: Path) -> str:
    parent = path.absolute().parent
    while not is_folder(parent):
        path, parent = parent, parent.parent
    try:
        near = get_close_matches(path.name, [p.name for p in parent.iterdir()], n=1)
    except OSError:
        near = []
    advice = f"did you mean {parent / near[0]}? Otherwise" if near else ""
    return f"no such file or directory ({parent} holds no {path.name!r}); {advice}".rstrip()


def faster(source: Source) -> str:
    """Advice for a run whose device waits for images from this source."""
    if source.origin.startswith(f"{PYTHON}://"):
        return "raise num_workers, or take paths or encoded images in place of a dataset that decodes them"
    if is_packed(Path(source.origin)):
        return "raise --num-workers, or pack with --codec raw"
    return f"`fastmim pack {shlex.quote(source.origin)} packed/` once and give --data packed/, or raise --num-workers"
