"""Settings as frozen dataclasses: each field, with its default and doc, is a flag, a YAML key and a keyword argument.

A field is written once. The command line takes its flags and help from it, `config.yaml` its keys, and
`fastmim.pretrain` its keyword arguments. Checks live in `__post_init__`, and a message always states the value, what
was expected and the remedy. No `settings` module may import torch: `fastmim --help` must be instant.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

import yaml

from fastmim.errors import RequestError


class Settings:
    """Base of the frozen dataclasses of settings; an instance remembers its arguments."""

    RESUMABLE: ClassVar[frozenset[str]] = frozenset()
    """Settings that may change on resuming: they decide where and how often, never the result."""

    given: dict[str, Any]
    """The keyword arguments of this instance, without defaults: on the command line, the flags that were typed."""

    def __new__(cls, *args: Any, **given: Any) -> Self:
        self = super().__new__(cls)
        object.__setattr__(self, "given", given)
        return self


Config = TypeVar("Config", bound=Any)  # any of the frozen dataclasses of settings


def nearest(word: str, words: Iterable[str]) -> str:
    """Return '; did you mean X?' for the known words closest to `word`, or '' if none is close."""
    close = difflib.get_close_matches(word, list(words), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def check_positive(config: Settings, *names: str) -> None:
    """Raise RequestError where one of these settings is a number that is not positive."""
    for name in names:
        value = getattr(config, name)
        if isinstance(value, int | float) and not value > 0:
            expected = "at least 1" if isinstance(value, int) else "more than 0"
            raise RequestError(f"{name} is {value}; expected {expected}")


def check_workers(num_workers: int | None) -> None:
    """Raise RequestError for a negative number of worker processes."""
    if num_workers is not None and num_workers < 0:
        raise RequestError(f"num_workers is {num_workers}; expected 0 (work in the main process) or more")


def check_bad_share(max_bad_share: float) -> None:
    """Raise RequestError for a share of unreadable images that is out of range."""
    if not 0 <= max_bad_share <= 1:
        raise RequestError(f"max_bad_share is {max_bad_share:g}; expected 0 to 1, such as 0.05")


def build(cls: type[Config], *layers: Mapping[str, Any]) -> Config:
    """Build settings from mappings, later ones overriding earlier ones.

    Raises:
        RequestError: an unknown key (the nearest real one is named) or a value of the wrong type.
    """
    names = [field.name for field in dataclasses.fields(cls)]
    lengths = {"budget", "epochs", "steps"}.intersection(names)
    merged: dict[str, Any] = {}
    for layer in layers:
        if any(layer.get(name) is not None for name in lengths):
            merged |= dict.fromkeys(lengths)  # a length replaces an earlier one in another unit
        merged |= layer
    for key in merged:
        if key not in names:
            raise RequestError(f"unknown setting {key!r}{nearest(key, names) or '; see --help for the settings'}")
    hints = typing.get_type_hints(cls)
    return cls(**{key: _coerce(key, value, hints[key]) for key, value in merged.items()})


# Written by hand: pydantic takes "yes" for a bool, msgspec refuses 2024 as text, cyclopts converts only text, and each
# would still need these messages.
def _coerce(key: str, value: Any, hint: Any) -> Any:
    """A YAML or Python value as the field's type, or a RequestError that names the field."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        if value is None:
            return None
        *others, hint = (option for option in typing.get_args(hint) if option is not type(None))
        for option in others:
            with contextlib.suppress(RequestError):
                return _coerce(key, value, option)
    origin, args = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin is Literal:
        expected = " or ".join(str(arg) for arg in args)
    else:
        expected = hint.__name__ if isinstance(hint, type) else str(hint)
    try:
        if origin is Literal and value in args:
            return value
        if origin is tuple and not isinstance(value, str):
            items = args[:1] * len(value) if args[-1] is Ellipsis else args
            return tuple(_coerce(key, item, arg) for item, arg in zip(value, items, strict=True))
        if origin is dict and isinstance(value, Mapping):
            # Python's names have underscores; on the command line people write dashes.
            return {k.replace("-", "_"): yaml.safe_load(v) if isinstance(v, str) else v for k, v in value.items()}
        if origin is bool and isinstance(value, bool):
            return value
        if origin is int and not isinstance(value, bool) and int(value) == float(value):
            return int(value)
        if origin is float and not isinstance(value, bool):
            return float(value)
        if origin in (str, Path) and isinstance(value, str | int | float | Path):
            return origin(value)
    except (TypeError, ValueError, yaml.YAMLError):
        pass
    raise RequestError(f"{key} is {value!r}; expected {expected}")


def to_mapping(config: Any) -> dict[str, Any]:
    """Return the settings as plain YAML types."""
    plain = dataclasses.asdict(config)
    return {k: str(v) if isinstance(v, Path) else list(v) if isinstance(v, tuple) else v for k, v in plain.items()}


def to_yaml(config: Any) -> str:
    """Return the text of a run's `config.yaml`."""
    return yaml.safe_dump(to_mapping(config), sort_keys=False)


def read(path: Path) -> dict[str, Any]:
    """Read settings from a YAML file, which may be a run's own `config.yaml`: its `versions` are left out.

    Raises:
        RequestError: no such file, or not a mapping.
    """
    try:
        settings = yaml.safe_load(path.read_text())
    except OSError as error:
        raise RequestError(f"config is {path}: {error.strerror}; expected a YAML file of settings") from None
    except yaml.YAMLError as error:
        raise RequestError(f"config is {path}, which is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(settings, dict):
        raise RequestError(f"config is {path}; expected `setting: value` lines, such as `epochs: 200`")
    settings.pop("versions", None)
    return settings


def differences(stored: Mapping[str, Any], config: Settings, *, ignore: Set[str] = frozenset()) -> list[str]:
    """Return what differs between stored settings and `config`, besides `ignore` and what may change on resuming."""
    now = to_mapping(config)
    keys = now.keys() - config.RESUMABLE - ignore
    return [
        f"{key} {stored[key]!r} -> {now[key]!r}" for key in now if key in keys and stored.get(key, now[key]) != now[key]
    ]
