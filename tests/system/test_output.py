"""Output that vanishes does not end a command."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from conftest import SMALL, command_line
from fastmim import cli
from fastmim.system.output import Enduring


def broken_pipe() -> io.TextIOWrapper:
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "w")


def test_a_stream_is_written_until_it_vanishes() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        output = Enduring(stream)
        assert output.write("one\n") == 4 and not output.isatty()
        output.flush()
        assert os.read(reading, 100) == b"one\n"
        os.close(reading)
        assert output.write("two\n") == 4
        output.flush()
        os.write(stream.fileno(), b"three")  # as code without Python writes


@pytest.mark.parametrize("stream", [None, io.StringIO()])
def test_a_stream_that_is_not_there(stream: Any) -> None:
    if stream:
        stream.close()
    output = Enduring(stream)
    assert output.write("one") == 3
    output.flush()


def test_what_the_console_s_code_page_lacks_is_escaped(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not an error, which would be taken for the stream's end."""
    (tmp_path / "照片").symlink_to(photos)
    words = [*command_line("pretrain", tmp_path / "照片", tmp_path / "Prüfung", SMALL)[3:], "--dry-run"]
    output = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr("sys.stdout", output)
    with pytest.raises(SystemExit, match="0"):
        cli.main(words)
    output.seek(0)
    lines = output.read().splitlines()
    assert any(line.startswith("data      ") and "\\u7167\\u7247: 24 images" in line for line in lines)
    assert f"out       {tmp_path / 'Prüfung'}" in lines


def test_a_run_outlives_the_reader_of_its_output(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = command_line("pretrain", photos, tmp_path / "run", SMALL)[3:]
    with broken_pipe() as output, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", output)
        with pytest.raises(SystemExit, match="0"):
            cli.main(words)
    assert (tmp_path / "run/weights.safetensors").exists()


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_list_ends_with_the_reader_of_its_output(monkeypatch: pytest.MonkeyPatch, unbuffered: str) -> None:
    """Without a word, and with the status of success, be it as it prints or as it ends."""
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    with broken_pipe() as output:
        done = subprocess.run(
            [sys.executable, "-m", "fastmim", "recipes"], stdout=output, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_run_whose_terminal_closes_saves_and_exits_75(tmp_path: Path, photos: Path) -> None:
    pty = pytest.importorskip("pty")
    out, settings = tmp_path / "run", SMALL | {"steps": 100_000, "save_every": 100_000}
    terminal, end = pty.openpty()
    process = subprocess.Popen(command_line("pretrain", photos, out, settings), stdout=end, stderr=end)
    os.close(end)
    deadline = time.monotonic() + 60
    while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").read_text():
        os.read(terminal, 65536)
        assert time.monotonic() < deadline and process.poll() is None
    os.close(terminal)  # from now on, writing is an I/O error
    time.sleep(0.3)
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=30) == 75
    assert len(list(out.glob("checkpoints/step_*"))) == 1
