"""The command line: instant help, suggestions for misspelt names, exit statuses, errors of one line."""

from __future__ import annotations

import errno
import re
import subprocess
import sys
import tarfile
import warnings
from pathlib import Path

import pytest
import yaml

import fastmim
from conftest import SMALL
from fastmim import cli
from fastmim.cli.commands import app
from fastmim.errors import RequestError
from fastmim.training.duration import in_words
from processes import Forked

PACKAGE = Path(fastmim.__file__).parent


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        cli.main(list(words))
    return int(exit_.value.code or 0)


def settings_file(folder: Path, photos: Path) -> Path:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(SMALL | {"data": str(photos), "out": str(folder / "run")}))
    return path


def test_help_does_not_import_torch() -> None:
    script = "import sys; from fastmim import cli\ntry: cli.main(['{}--help'])\nexcept SystemExit: pass\n"
    check = "heavy = {'torch', 'timm', 'numpy', 'PIL'} & set(sys.modules); assert not heavy, heavy"
    for command in ("", "pretrain', '"):
        subprocess.run([sys.executable, "-c", script.format(command) + check], check=True, stdout=subprocess.DEVNULL)


def test_a_flag_counts_as_given_even_at_its_default() -> None:
    """A recipe or a resumed study's settings yield to flags, but not to defaults."""
    words = ["pretrain", "--lr", "1.5e-4", "--no-compile", "--backbone-args.depth", "4"]
    _, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
    assert bound.arguments["settings"].given == {"lr": 1.5e-4, "compile": False, "backbone_args": {"depth": "4"}}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("settings.py")), ids=lambda path: path.parent.name)
def test_settings_do_not_import_torch(path: Path) -> None:
    name = ".".join(("fastmim", *path.relative_to(PACKAGE).with_suffix("").parts))
    check = f"import sys, {name}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_the_last_of_repeated_options_counts(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--steps", "3", "--steps", "4", "--betas", "0.9", "0.95", "--betas", "0.5", "0.6", "--device", "cpu"]
    words += ["--backbone-args.depth", "2", "--backbone-args.depth", "1", "--out", str(tmp_path), "--dry-run"]
    assert run("pretrain", "--config", str(settings_file(tmp_path, photos)), *words) == 0
    shown = yaml.safe_load(capsys.readouterr().out.partition("\n\n")[0])
    assert (shown["steps"], shown["betas"], shown["backbone_args"]["depth"]) == (4, [0.5, 0.6], 1)


def test_a_dry_run_says_how_long_the_run_will_take(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastmim.training.duration.seconds_per_image", lambda *_, **__: (0.5, 6))
    words = ["--config", str(settings_file(tmp_path, photos)), "--steps", "1000", "--stages", "32:0.5,64:0.5"]
    assert (
        run("pretrain", *words, "--dry-run") == 0
    )  # 8 images x 0.5 s, and four times as many pixels in half the steps
    assert "about 2.8 h on this machine, at 4 s a step, by a trial on 6 images; data," in capsys.readouterr().out
    assert [in_words(seconds) for seconds in (0, 70, 90, 5400, 200_000)] == [
        "0 s",
        "70 s",
        "2 min",
        "1.5 h",
        "2.3 days",
    ]


def test_help_shows_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("pretrain", "--help") == 0
    text = capsys.readouterr().out
    for flag in [
        "data",
        "backbone",
        "img-size",
        "stages",
        "target",
        "mask-ratio",
        "block",
        "encoder-depth",
        "epochs",
        "steps",
        "batch-size",
        "lr",
        "seed",
    ]:
        assert f"--{flag}" in text
    for flag in [
        "num-workers",
        "device",
        "compile",
        "no-compile",
        "save-every",
        "init",
        "recipe",
        "config",
        "out",
        "overwrite",
        "dry-run",
    ]:
        assert f"--{flag}" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pretrian"], 'Unknown command "pretrian". Did you mean "pretrain"?'),
        (
            ["pretrain", "photos"],
            "'photos' is not expected here; options begin with --, as in --data photos/: see --help",
        ),
        (
            ["export", "run", "--out", "x.pt2"],
            "to is not given; expected timm, hf, state-dict, onnx or torch-export, as in",
        ),
        (["export", "run", "--to", "timm"], "out is not given; expected a directory or file to write, as in --to timm"),
        (["pretrain", "--lrr", "3"], "Unknown option: --lrr. Did you mean --lr?"),
        (["pretrain", "--lr", "fast"], 'Invalid value for --lr: unable to convert "fast" into float.'),
        (
            ["pretrain", "--target", "hoG2"],
            'Invalid value "hoG2" for --target. Choose from: "hog", "pixels", "rgb", "random',
        ),
        (["pretrain", "--mask-ratio", "2"], "mask_ratio is 2.0; expected at least 0 and less than 1, such as 0.75"),
        (["pretrain", "--config", "none.yaml"], "config is none.yaml: No such file or directory"),
        (["pretrain", "--data", "no/such/dir"], "no/such/dir"),
        (["visualise", "no/such/run"], "run is no/such/run; expected a run directory with a config.yaml"),
        (["backbones", "vit_tinny*"], "vit_tinny*"),
        (["backbones", "vit_tiny_patch16_224", "--img-size", "0"], "img_size is 0; expected at least 1 pixel"),
        (["visualise", "no/such/run", "--num-images", "0"], "num_images is 0; expected at least 1"),
        (["pack", "samples", "/"], "out is /; expected a path with a name"),
        (["probe", "--data", "samples", "--weights", "none", "--out", "."], "out is ., a folder; expected a file"),
        (["pretrain", "--config", "/dev/zero"], "config is /dev/zero, of more than 262,144 characters; expected lines"),
        (["pretrain", "--img-size", "100000000", "--dry-run"], "img_size is 100000000; expected at most 8192 pixels"),
        (["pretrain", "--block", "9" * 18, "--dry-run"], "expected a multiple of the block of 999999999999999999"),
        (["pretrain", "--steps", "9" * 30, "--dry-run"], "; expected an integer of 64 bits"),
    ],
)
def test_a_wrong_request_is_one_line_and_exits_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*words) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.startswith("fastmim: ") and printed.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_misspelt_key_in_yaml_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("bachsize: 3\n")
    assert run("pretrain", "--config", str(path)) == 2
    assert "unknown setting 'bachsize'; did you mean batch_size or teacher_size?" in capsys.readouterr().err


def test_flags_override_the_file_and_dry_run_does_nothing(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("pretrain", "--config", str(settings_file(tmp_path, photos)), "--lr", "0.5", "--dry-run") == 0
    printed = capsys.readouterr().out
    assert "lr: 0.5" in printed and "batch_size: 8" in printed
    assert "24 images, 3 steps an epoch" in printed and "12 steps (4.0 epochs)" in printed
    assert not (tmp_path / "run").exists()


def test_a_length_beyond_counting_is_planned(tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = SMALL | {"data": str(photos), "steps": None, "epochs": 1e308}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    assert run("pretrain", "--config", str(tmp_path / "run.yaml"), "--dry-run") == 0
    assert "length    9223372036854775807 steps" in capsys.readouterr().out


def test_a_run_and_its_pictures(tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("pretrain", "--config", str(settings_file(tmp_path, photos)), "--target", "pixels") == 0
    picture = tmp_path / "pictures/x.png"
    assert run("visualise", str(tmp_path / "run"), "--images", str(photos), "--out", str(picture)) == 0
    assert picture.stat().st_size > 10_000
    (tmp_path / "run/checkpoints").rename(tmp_path / "run/elsewhere")
    assert run("visualise", str(tmp_path / "run"), "--out", str(picture)) == 2
    assert "which has no checkpoint yet" in capsys.readouterr().err


def test_a_path_that_looks_like_markup_is_a_path(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = settings_file(tmp_path, photos), f"{tmp_path}/[bold]/[/red]"
    assert run("pretrain", "--config", str(file), "--steps", "1", "--out", out) == 0
    assert f"done: {out}/weights.safetensors" in capsys.readouterr().out
    features = ("--weights", out, "--data", str(photos), "--device", "cpu", "--num-workers", "0")
    assert run("embed", *features, "--out", f"{out}/features.npy") == 0
    shown = capsys.readouterr().out
    assert f"weights   {out}: " in shown and f"wrote {out}/features.npy: 24 x 48" in shown


def test_a_run_that_fails_exits_1(tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = settings_file(tmp_path, photos)
    assert run("pretrain", "--config", str(file), "--lr", "1e38", "--warmup", "0", "--steps", "60") == 1
    assert "not finite" in capsys.readouterr().err


def test_a_run_that_is_stopped_before_its_first_step_exits_75(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastmim.training.run._train", lambda *_: 0)
    assert run("pretrain", "--config", str(settings_file(tmp_path, photos))) == 75
    assert capsys.readouterr().err == "stopped with nothing to save yet; run the same command to resume\n"


def test_backbones_lists(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("backbones", "vit_tiny_patch16_224") == 0
    words = capsys.readouterr().out.splitlines()[-1].split()
    assert words == ["vit_tiny_patch16_224", "16", "192", "5.5"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device; checkpoints are intact: free"),
        (OSError(errno.EROFS, "Read-only file system"), "Read-only file system; checkpoints are intact: free space or"),
        (FileExistsError(errno.EEXIST, "File exists", "run/samples"), "'run/samples'; checkpoints are intact: mend or"),
        (ConnectionError("no\nroute"), "fastmim: ConnectionError: no; set FASTMIM_DEBUG=1"),
        (RecursionError(), "fastmim: RecursionError; set FASTMIM_DEBUG=1 to see where it happened"),
        (KeyError("a\nb"), r"KeyError: 'a\nb'; set FASTMIM_DEBUG=1"),
        (RuntimeError("\x1b]0;title\x07 of [bold]\nmany\nlines"), r"RuntimeError: \x1b]0;title\x07 of [bold]; set"),
        (RequestError("data is \x1b[31m"), r"data is \x1b[31m"),
    ],
)
@pytest.mark.parametrize("debug", ["0", "1"])
def test_any_error_is_one_printable_line(
    error: Exception,
    message: str,
    debug: str,
    tmp_path: Path,
    photos: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setenv("FASTMIM_DEBUG", debug)
    monkeypatch.setattr("fastmim.training.run.make_plan", fail)
    assert run("pretrain", "--config", str(settings_file(tmp_path, photos))) == (
        2 if type(error) is RequestError else 1
    )
    *traceback, line = capsys.readouterr().err.splitlines()
    assert line.startswith("fastmim: ") and message in line
    assert ("Traceback (most recent call last):" in traceback) == (debug == "1") == bool(traceback)


def test_remarks_of_the_compiler_are_not_passed_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(*_: object, **__: object) -> int:
        warnings.warn("\nOnline softmax is disabled on the fly since ...", stacklevel=1)
        warnings.warn("TensorFloat32 tensor cores for float32 matrix multiplication available ...", stacklevel=1)
        return 0

    monkeypatch.setattr("fastmim.cli.app.app", command)
    with pytest.raises(SystemExit, match="0"):
        cli.main([])
    assert capsys.readouterr().err == ""


def test_a_warning_is_one_line(tmp_path: Path, photos: Path) -> None:
    """For a truncated shard: its intact part is used, and the user is told once, without our source line."""
    whole = tmp_path / "whole.tar"
    with tarfile.open(whole, "w") as tar:
        for path in sorted(photos.iterdir()):
            tar.add(path, path.name)
    (tmp_path / "cut.tar").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    words = ["pretrain", "--data", str(tmp_path / "cut.tar"), "--batch-size", "2", "--dry-run", "--img-size", "64"]

    def command() -> None:
        warnings.simplefilter("default")
        cli.main([*words, "--backbone", "test_vit"])

    with Forked(command, tmp_path / "log", errors=tmp_path / "errors") as process:
        _, errors = process.communicate()
    assert process.returncode == 0
    assert re.fullmatch(r"fastmim: warning: the shard .*cut\.tar is damaged .* are used; fetch it again\n", errors)
