"""The typed signatures of the public functions: in help, and in src/fastmim/__init__.pyi, which this module writes."""

from __future__ import annotations

import inspect
import json
import types
import typing
from pathlib import Path
from typing import Any

import pytest
from mypy import api

import fastmim
from fastmim.method.settings import PretrainConfig

STUB = Path(fastmim.__file__).with_suffix(".pyi")
BEGIN = '''"""The public names with their types, for editors and type checkers: written by tests/test_signatures.py."""

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any, Literal

'''


def stub() -> str:
    """A function with settings as its signature, any other name as an import."""
    imports, functions = set(), []
    for name in fastmim.__all__:
        value = getattr(fastmim, name)
        if hasattr(value, "__signature__"):
            signature = inspect.signature(value)
            hints = [parameter.annotation for parameter in signature.parameters.values()]
            imports |= {
                f"import {module}" for hint in (*hints, signature.return_annotation) for module in _modules(hint)
            }
            functions.append(_definition(name, signature))
        elif name != "__version__":
            imports.add(f"from {fastmim._HOMES[name]} import {name} as {name}")
    plain, named = (sorted(line for line in imports if line.startswith(word)) for word in ("import", "from"))
    return "\n".join([BEGIN + "\n".join(plain + named), "", "__version__: str", "", *functions, ""])


def _definition(name: str, signature: inspect.Signature) -> str:
    lines, keyword_only = [], False
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            lines, keyword_only = [*lines, "    *,"], True
        default = "" if parameter.default is parameter.empty else f" = {_literal(parameter.default)}"
        lines.append(f"    {parameter.name}: {_type(parameter.annotation)}{default},")
    return "\n".join([f"def {name}(", *lines, f") -> {_type(signature.return_annotation)}: ..."])


def _literal(value: Any) -> str:
    return json.dumps(value) if isinstance(value, str) else repr(value)


def _type(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is types.NoneType:
        return "None"
    if isinstance(hint, list):  # the arguments of a Callable
        return f"[{', '.join(map(_type, hint))}]"
    if origin in (types.UnionType, typing.Union):
        return " | ".join(map(_type, args))
    if origin is typing.Literal:
        return f"Literal[{', '.join(map(_literal, args))}]"
    if origin:
        return f"{_type(origin)}[{', '.join(map(_type, args))}]"
    own = hint.__module__.startswith("fastmim")
    return f"{hint.__module__}.{hint.__qualname__}" if own else hint.__name__


def _modules(hint: Any) -> set[str]:
    own = {hint.__module__} if getattr(hint, "__module__", "").startswith("fastmim") else set()
    return own.union(*map(_modules, hint if isinstance(hint, list) else typing.get_args(hint)))


def test_the_stub_is_up_to_date() -> None:
    assert STUB.read_text() == stub(), "python tests/test_signatures.py writes it"


def test_help_shows_the_settings_with_their_defaults() -> None:
    parameters = inspect.signature(fastmim.pretrain).parameters
    assert parameters["batch_size"].default == PretrainConfig().batch_size
    assert {"overwrite", "mask_ratio", "stages"} < parameters.keys() and "settings" not in parameters


@pytest.fixture
def check(tmp_path: Path) -> Any:
    """mypy, on code that imports the stub alone."""
    (tmp_path / "fastmim").mkdir()
    (tmp_path / "fastmim/__init__.pyi").write_text(STUB.read_text())

    def run(code: str) -> str:
        (tmp_path / "code.py").write_text(f"import fastmim\n{code}\n")
        options = ["--strict", "--ignore-missing-imports", "--no-site-packages", f"--cache-dir={tmp_path}"]
        return api.run([*options, "--config-file=", str(tmp_path / "code.py")])[0]

    return run


def test_a_type_checker_finds_misspelt_settings_and_wrong_types(check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MYPYPATH", "")
    said = check(
        'fastmim.pretrain(data="photos/", bach_size=64)\n'
        'fastmim.finetune(weights="runs/photos", mixup="much")\n'
        'fastmim.pretrain(target="hogs")\n'
        "from pathlib import Path\n"
        'fastmim.pretrain(out=Path("runs"), betas=(0.9, 0.95), backbone_args={"depth": 4}, data=Path("photos"))\n'
        'fastmim.pretrain(data=[Path("a.jpg")])\n'
        'fastmim.study(data="a", sweep={"target": ["hog", "pixels"]})'
    )
    errors = [line.partition(".py:")[2].partition(":")[0] for line in said.splitlines() if " error:" in line]
    assert errors == ["2", "3", "4"], said
    assert 'Unexpected keyword argument "bach_size"' in said and 'did you mean "batch_size"' in said


if __name__ == "__main__":
    STUB.write_text(stub())
