"""What a run is: frozen dataclasses whose fields, defaults and docs are the CLI, the YAML file and the API.

A field is written once. The command line takes its flags and help from it, `config.yaml` its keys, and
`fastmim.pretrain` its keyword arguments. Checks live in `__post_init__`, and a message always states the
value, what was expected and the remedy. No torch here: `fastmim --help` must be instant.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from fastmim.errors import RequestError

Config = TypeVar("Config", bound=Any)  # any of the frozen dataclasses of settings


def nearest(word: str, words: typing.Iterable[str]) -> str:
    """', did you mean X?' where some known word is near, else ''."""
    close = difflib.get_close_matches(word, list(words), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def build(cls: type[Config], *layers: Mapping[str, Any]) -> Config:
    """A config from mappings, later ones overriding earlier ones.

    Raises:
        RequestError: an unknown key (the nearest real one is named) or a value of the wrong type.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        merged |= layer
        # A length given later replaces one given earlier in the other unit.
        for length, other in (("epochs", "steps"), ("steps", "epochs")):
            if layer.get(length) is not None and layer.get(other) is None:
                merged[other] = None
    hints = typing.get_type_hints(cls)
    for key in merged:
        if key not in hints:
            raise RequestError(f"unknown setting {key!r}{nearest(key, hints) or '; see --help for the settings'}")
    return cls(**{key: _coerce(key, value, hints[key]) for key, value in merged.items()})


def _coerce(key: str, value: Any, hint: Any) -> Any:
    """A YAML or Python value as the field's type, or a RequestError naming the field."""
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
        if origin is tuple and not isinstance(value, str) and len(value) == len(args):
            return tuple(_coerce(key, item, arg) for item, arg in zip(value, args, strict=True))
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
    """The config as plain YAML types."""
    plain = dataclasses.asdict(config)
    return {k: str(v) if isinstance(v, Path) else list(v) if isinstance(v, tuple) else v for k, v in plain.items()}


def to_yaml(config: Any) -> str:
    """The config as `config.yaml` has it."""
    return yaml.safe_dump(to_mapping(config), sort_keys=False)


def read(path: Path) -> dict[str, Any]:
    """The settings in a YAML file (a run's own `config.yaml` will do; its `versions` are not settings).

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


def differences(stored: Mapping[str, Any], config: Any) -> list[str]:
    """What a stored run's settings and `config` disagree on, leaving out what may change on resuming."""
    now = to_mapping(config)
    keys = [key for key in now if key not in config.RESUMABLE and stored.get(key, now[key]) != now[key]]
    return [f"{key} {stored[key]!r} -> {now[key]!r}" for key in keys]
