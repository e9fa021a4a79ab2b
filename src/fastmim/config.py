"""Settings as frozen dataclasses: each field, with its default and doc, is a flag, a YAML key and a keyword argument.

A field is written once. The command line takes its flags and help from it, `config.yaml` its keys, and
`fastmim.pretrain` its keyword arguments. Checks live in `__post_init__`, and a message always states the value, what
was expected and the remedy. No `settings` module may import torch: `fastmim --help` must be instant.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import inspect
import json
import math
import operator
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self, TypeVar

import yaml

from fastmim.errors import RequestError, first_line, shown


class Settings:
    """Base of the frozen dataclasses of settings; an instance remembers its arguments."""

    RESUMABLE: ClassVar[frozenset[str]] = frozenset()
    """Settings that may change on resuming: they decide where and how often, never the result."""

    PLACES: ClassVar[frozenset[str]] = frozenset()
    """Settings whose text may name a file or a folder. A run's config.yaml holds them as absolute paths."""

    FROM_PYTHON: ClassVar[frozenset[str]] = frozenset()
    """Settings that from Python may be a dataset or a list of images, in place of text."""

    given: dict[str, Any]
    """The keyword arguments of this instance, without defaults: on the command line, the flags that were typed."""

    def __new__(cls, *args: Any, **given: Any) -> Self:
        self = super().__new__(cls)
        object.__setattr__(self, "given", given)
        return self


class Dataset(Protocol):
    """A map-style dataset, such as torch's and Hugging Face's, or a list of images."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


Config = TypeVar("Config", bound=Any)  # any of the frozen dataclasses of settings
Function = TypeVar("Function", bound=Callable[..., Any])

ABOUT = ("versions", "learned_from")
"""What a run's `config.yaml` tells beside its settings: versions; the networks that it starts from and learns from."""

_MAX_CHARACTERS = 1 << 18  # of a config file; PyYAML takes a second for it
_MAX_VALUES = 100_000  # in a config file, where nested aliases can stand for any number
_MAX_NAME = 255  # bytes of a file name


def nearest(word: str, words: Iterable[str]) -> str:
    """Return '; did you mean X?' for the known words closest to `word`, or '' if none is close."""
    close = difflib.get_close_matches(word, list(words), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def check_positive(config: Settings, *names: str) -> None:
    """Raise RequestError where one of these settings is a number that is not positive, or infinite."""
    for name in names:
        value = getattr(config, name)
        if isinstance(value, int | float) and not 0 < value < math.inf:
            expected = "at least 1" if isinstance(value, int) else "more than 0, and finite"
            raise RequestError(f"{name} is {shown(value)}; expected {expected}")


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
            close = nearest(key, names) if isinstance(key, str) else ""
            raise RequestError(f"unknown setting {shown(key)}{close or '; see --help for the settings'}")
    hints = typing.get_type_hints(cls)
    return cls(**{key: _coerce(key, value, hints[key]) for key, value in merged.items()})


def takes(cls: type[Settings], **wider: Any) -> Callable[[Function], Function]:
    """Decorate a function of `**settings`: its signature, and so help and completion, shows the fields of `cls`.

    The names are checked when the function builds its settings. src/fastmim/__init__.pyi has the same signatures for
    editors and type checkers; tests/test_signatures.py writes it.

    Args:
        cls: The settings.
        wider: The types of settings that from Python may be more than `build` takes.
    """

    def decorate(function: Function) -> Function:
        own = inspect.signature(function, eval_str=True)
        named = [p for p in own.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        hints = typing.get_type_hints(cls)
        hints |= {name: _accepted(hint, path=name in cls.PLACES) for name, hint in hints.items()}
        hints |= {name: Dataset | hints[name] for name in cls.FROM_PYTHON} | wider
        shown = [
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=_shown(field), annotation=hints[field.name]
            )
            for field in dataclasses.fields(cls)  # type: ignore[arg-type]
            if field.name not in own.parameters
        ]
        function.__signature__ = own.replace(parameters=[*named, *shown])  # type: ignore[attr-defined]
        return function

    return decorate


def _shown(field: dataclasses.Field[Any]) -> Any:
    """The default of a field, as one would give it from Python."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    if field.default is dataclasses.MISSING:
        return inspect.Parameter.empty
    return str(field.default) if isinstance(field.default, Path) else field.default


def _accepted(hint: Any, *, path: bool) -> Any:
    """The type of what `build` takes for a field of this type.

    Args:
        hint: The field's type.
        path: Whether its text may name a file.
    """
    if hint is Path or (hint is str and path):
        return str | os.PathLike[str]
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return functools.reduce(operator.or_, [_accepted(option, path=path) for option in args])
    return Sequence[args[0]] if origin is tuple and args[-1] is Ellipsis else hint  # type: ignore[valid-type]


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
        if origin is dict and isinstance(value, Mapping) and all(isinstance(k, str) for k in value):
            # Python's names have underscores; on the command line people write dashes.
            return {k.replace("-", "_"): parse(f"{key}.{k}", v) if isinstance(v, str) else v for k, v in value.items()}
        if origin is bool and isinstance(value, bool):
            return value
        if origin is int and not isinstance(value, bool) and (isinstance(value, int) or int(value) == float(value)):
            if -(1 << 63) <= int(value) < 1 << 63:
                return int(value)
            expected = "an integer of 64 bits"
        if origin is float and not isinstance(value, bool):
            return float(value)
        if origin in (str, Path) and isinstance(value, str | int | float | Path):
            text = value if isinstance(value, origin) else origin(value)
            _check_text(key, text)
            return text
    except RequestError:
        raise
    except (TypeError, ValueError, OverflowError):
        pass
    raise RequestError(f"{key} is {shown(value)}; expected {expected}")


def parse(key: str, text: str) -> Any:
    """Read one value as YAML.

    Raises:
        RequestError: it is not YAML.
    """
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise RequestError(
            f"{key} is {shown(text)}; expected a number, a word or a list ({first_line(error)})"
        ) from None


def _check_text(key: str, text: str | Path) -> None:
    """Raise RequestError for a text that no file can be called by."""
    if "\0" in str(text):
        raise RequestError(f"{key} is {shown(str(text))}; expected no zero byte in it")
    if isinstance(text, Path) and any(len(os.fsencode(name)) > _MAX_NAME for name in text.parts):
        raise RequestError(f"{key} is {shown(str(text))}; expected names of at most {_MAX_NAME} bytes in a path")


def to_mapping(config: Any) -> dict[str, Any]:
    """Return the settings as plain YAML types."""
    plain = dataclasses.asdict(config)
    return {k: str(v) if isinstance(v, Path) else list(v) if isinstance(v, tuple) else v for k, v in plain.items()}


def to_yaml(config: Any) -> str:
    """Return the text of a run's `config.yaml`."""
    return yaml.safe_dump(to_mapping(config), sort_keys=False, allow_unicode=True)


def read(path: Path) -> dict[str, Any]:
    """Read settings from a YAML file, which may be a run's own `config.yaml`: what is no setting is left out.

    Raises:
        RequestError: no such file, not YAML, or not a mapping; or it is larger than any config.
    """
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_MAX_CHARACTERS + 1)
        _check_size(path, text)
        settings = yaml.safe_load(text)
    except RequestError:
        raise
    except OSError as error:
        raise RequestError(f"config is {path}: {error.strerror}; expected a YAML file of settings") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        said = " ".join(str(error).split())
        raise RequestError(
            f"config is {path}, which is not YAML: {said}; expected lines such as `epochs: 200`"
        ) from None
    except (ValueError, OverflowError) as error:  # of a number or a date
        raise RequestError(
            f"config is {path}, with a value that cannot be read: {first_line(error)}; correct it"
        ) from None
    if not isinstance(settings, dict):
        raise RequestError(f"config is {path}; expected `setting: value` lines, such as `epochs: 200`")
    if odd := [key for key in settings if not isinstance(key, str)]:
        raise RequestError(
            f"config is {path}, with the setting {shown(odd[0])}; expected a name, such as `epochs: 200`"
        )
    return {name: value for name, value in settings.items() if name not in ABOUT}


def _check_size(path: Path, text: str) -> None:
    """Refuse a file that is too long, or whose aliases (`*name`), written out, would fill the memory."""
    if len(text) > _MAX_CHARACTERS:
        raise RequestError(f"config is {path}, of more than {_MAX_CHARACTERS:,} characters; expected lines of settings")
    left, waiting = _MAX_VALUES, [yaml.compose(text, yaml.SafeLoader)]
    while waiting:
        content = getattr(waiting.pop(), "value", None)
        for item in content if isinstance(content, list) else ():  # a sequence's nodes, or a mapping's pairs of nodes
            waiting += item if isinstance(item, tuple) else (item,)
            left -= 1
        if left < 0:
            raise RequestError(
                f"config is {path}, whose aliases stand for more than {_MAX_VALUES:,} values; write the settings out"
            )


def differences(stored: Mapping[str, Any], config: Settings, *, ignore: Set[str] = frozenset()) -> list[str]:
    """Return what differs between stored settings and `config`, besides `ignore` and what may change on resuming."""
    before, now = _as_json(stored), _as_json(to_mapping(config))
    keys = now.keys() - config.RESUMABLE - ignore
    return [
        f"{key} {shown(before[key])} -> {shown(now[key])}"
        for key in now
        if key in keys and before.get(key, now[key]) != now[key]
    ]


def _as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as a file holds them: tuples are lists there."""
    return json.loads(json.dumps(settings, default=str))
