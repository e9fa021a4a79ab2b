"""What README and the package promise: its commands run, its table is the records', its names exist."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import torch

import fastmim
from fastmim import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.split("#")[0].strip().removeprefix(".venv/bin/")
    for line in README.splitlines()
    if re.match(r"    (\.venv/bin/)?fastmim ", line)
]


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("fastmim pretrain") and "--init" not in c])
def test_readme_commands_run(command: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a dry run, which resolves settings, data, model and plan; on the test's photographs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text("data: samples\n")
    stand_ins = dict.fromkeys(("photos/", "packed/", "imagenet/train"), str(photos)) | {"auto": "4"}  # no CUDA here
    words = [stand_ins.get(word, word) for word in shlex.split(command)[1:]]
    with pytest.raises(SystemExit) as exit_:
        cli.main([*words, "--batch-size", "8", "--device", "cpu", *([] if "--dry-run" in words else ["--dry-run"])])
    assert exit_.value.code == 0


def test_every_readme_command_is_a_command() -> None:
    for command in COMMANDS:
        name = shlex.split(command)[1]
        assert name in {n.strip("-") for n in cli.app}, command


def test_readme_python_runs(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").symlink_to(photos)
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    small = 'out="runs/photos", steps=1, batch_size=2, device="cpu", trackers="none", picture_every="never"'
    names: dict[str, object] = {"images": torch.randn(2, 3, 128, 128)}
    for block in sorted(blocks, key=lambda block: "create_model" in block):  # the run first, then its weights
        exec(block.replace('out="runs/photos"', small), names)
    assert isinstance(names["backbone"], torch.nn.Module)


def test_the_figures_are_those_of_the_records() -> None:
    spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks/tables.py")
    assert spec and spec.loader
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    assert tables.updated(README) == README


def test_public_names() -> None:
    for name in fastmim.__all__:
        assert getattr(fastmim, name).__doc__
    assert set(fastmim.__all__) == set(dir(fastmim))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        fastmim.nothing  # noqa: B018


def test_module_sizes() -> None:
    """Files that can be read at one sitting."""
    sizes = sorted(len(path.read_text().splitlines()) for path in (ROOT / "src").rglob("*.py"))
    assert sizes[len(sizes) // 2] < 150 and sizes[-1] <= 400


def test_every_module_has_its_sentence() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    for path in (ROOT / "src/fastmim").iterdir():
        if path.stem not in ("__init__", "__main__", "__pycache__", "py"):
            assert f"`{path.stem}`" in text, path.stem
