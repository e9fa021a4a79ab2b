"""Several processes train as one does: the same losses, one set of files, one answer to signals, failures and errors."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import fastmim
from conftest import SMALL, losses
from fastmim import cli
from fastmim.data.sources import Source, open_source
from fastmim.errors import RequestError
from fastmim.system.processes import Place, find_place, first_host, run_on_devices
from fastmim.system.run_directory import RunDirectory
from fastmim.training import loop
from fastmim.training.loop import to_device
from fastmim.training.world import World, joined
from fastmim.transfer.classify.evaluation import answer
from processes import fork, fork_devices, together, wait_for

STAGED: dict[str, Any] = {"stages": "32:0.5,48:0.5", "micro_batch": 2}
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def test_two_processes_train_stop_and_go_on_as_one(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stages, accumulation, a signal, another number of processes: each loss is that of one process."""
    settings = SMALL | STAGED | {"steps": 40, "log_every": 1, "save_every": 1000}
    fastmim.pretrain(**settings, data=str(photos), out=tmp_path / "one")
    fork_devices(tmp_path / "two.log", monkeypatch)
    with fork("pretrain", photos, tmp_path / "two", settings | {"devices": 2}) as run:
        wait_for(tmp_path / "two/metrics.jsonl", 3)
        run.send_signal(signal.SIGTERM)
        said, _ = run.communicate()
    assert run.returncode == 75, said
    assert said.count("stopped and saved at step") == 1 and said.count("batch     8 images, 2, 1 at once on each") == 1
    assert len(list((tmp_path / "two/checkpoints").iterdir())) == 1
    fastmim.pretrain(**settings, data=str(photos), out=tmp_path / "two")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    one, two = (load_file(tmp_path / name / "weights.safetensors") for name in ("one", "two"))
    assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)


def test_each_process_is_told_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """By a Python that repeats what it was told."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$*: $RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE $FASTMIM_PARENT"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    assert run_on_devices(["pretrain", "--devices", "2"], 2) == 0
    told = [f"-m fastmim pretrain --devices 2: {rank} {rank} 2 2 {os.getpid()}" for rank in (0, 1)]
    assert sorted(capfd.readouterr().out.splitlines()) == told


def test_two_processes_share_masks_and_a_teacher(photos: Path, pretrained: Path, tmp_path: Path) -> None:
    settings = SMALL | {"steps": 3, "log_every": 1, "masks_per_image": 2, "target": "hog+teacher"}
    settings |= {"teacher": str(pretrained)}
    fastmim.pretrain(**settings, data=str(photos), out=tmp_path / "one")
    statuses, said = together("pretrain", photos, tmp_path / "two", settings, settings)
    assert statuses == [0, 0], said
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)


def test_processes_share_the_validation_of_a_finetuning(
    labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scores are those of one process, and so is the list of unreadable images, also if the other finds one."""
    shutil.copytree(labelled, tmp_path / "labelled")
    (tmp_path / "labelled/val/blue/1.jpg").write_bytes(b"no image")  # the second of the images
    settings = {k: v for k, v in SMALL.items() if k not in ("picture_every", "stages")}
    settings |= {"weights": "none", "eval_every": "6 steps", "ema": 0.9, "mixup": 0.0, "cutmix": 0.0}
    settings |= {"max_bad_share": 0.9, "drop_path": 0.0, "reprob": 0.0}  # drawn by process
    fastmim.finetune(**settings, data=str(tmp_path / "labelled"), out=tmp_path / "one")

    def answer_noted(*args: Any, indices: Any, **options: Any) -> Any:
        with (tmp_path / "answered").open("a") as file:
            file.write(f"{list(indices)}\n")
        return answer(*args, indices=indices, **options)

    at_rank(1, "fastmim.transfer.classify.validation.answer", answer_noted, monkeypatch)
    statuses, said = together("finetune", tmp_path / "labelled", tmp_path / "two", settings, settings)
    assert statuses == [0, 0], said
    assert (tmp_path / "answered").read_text() == 2 * f"{list(range(1, 24, 2))}\n"
    one, two = (RunDirectory(tmp_path / name) for name in ("one", "two"))
    scores, expected = (
        {line["step"]: line["val_loss"] for line in run.read_metrics() if "val_loss" in line} for run in (two, one)
    )
    assert scores == pytest.approx(expected, rel=1e-4) and list(scores) == [6, 12]
    assert two.bad_images.read_text() == one.bad_images.read_text() != ""
    assert json.loads(two.evaluation.read_text())["images"] == 23


def test_a_process_that_dies_ends_the_others(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fork_devices(tmp_path / "run.log", monkeypatch)
    # Both have ended when their parent looks: it must still tell the one that was killed from the one that lost it.
    monkeypatch.setattr("fastmim.system.processes._POLL_SECONDS", 2.0)
    with fork("pretrain", photos, tmp_path / "run", SMALL | {"steps": 100_000, "devices": 2}) as run:
        wait_for(tmp_path / "run/metrics.jsonl", 2)
        children = [int(pid) for pid in Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()]
        os.kill(children[1], signal.SIGKILL)
        said, _ = run.communicate()
    assert run.returncode == 1 and "Traceback" not in said
    assert "process 1 of 2 was ended by SIGKILL; run the same command to resume" in said
    assert "process 0 has lost another process of the run" in said
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)


def test_a_straggler_is_named_once(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*arguments: Any) -> Any:
        time.sleep(0.2)
        return to_device(*arguments)

    at_rank(1, "fastmim.training.loop.to_device", slow, monkeypatch)
    settings = SMALL | {"steps": 8}
    statuses, said = together("pretrain", photos, tmp_path / "run", settings, settings)
    assert statuses == [0, 0], said
    [line] = [line for line in said.splitlines() if "all wait for it" in line]
    assert re.fullmatch(
        r"process 1 on \S+ waits for its data \d\d% of the time, the others \d+%: all wait for it", line
    )


def test_a_straggler_is_slow_twice_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.size = 3
    lines = iter([(0.1, 0.1, 0.1), (0.1, 0.3, 0.1), (0.1, 0.3, 0.1), (0.1, 0.3, 0.1), (0.3, 0.1, 0.1), (0.1, 0.1, 0.1)])
    metrics = {"loss": 0.5, "data_wait_share": 0.1, "memory_gb": 1.0}
    more = metrics | {"data_wait_share": 0.2, "memory_gb": 3.0}
    each = [(metrics, "node", 0.0), (more, "node", 0.0), (metrics, "node", 0.0)]
    monkeypatch.setattr(
        world, "exchange", lambda _: [(*one, line) for one, line in zip(each, next(lines), strict=True)]
    )
    found = [world.compare(metrics, 0.0, 0.1) for _ in range(6)]
    assert all(compared == more for compared, _ in found)
    said = [line for _, line in found]
    assert said == [
        None,
        None,
        "process 1 on node takes 0.3 s for a forward pass, the others 0.1 s: all wait for it",
        *3 * [None],
    ]


def test_processes_with_other_settings_are_refused(photos: Path, tmp_path: Path) -> None:
    statuses, said = together("pretrain", photos, tmp_path / "run", SMALL, SMALL | {"seed": 1})
    assert statuses == [2, 2]
    assert said.count("seed is 1 in process 1; expected 0, as in process 0: start every process with the same") == 2
    assert not (tmp_path / "run").exists()


def at_rank(rank: int, place: str, other: Any, patch: pytest.MonkeyPatch) -> None:
    """Replace a function in one of the processes that are forked from this one."""
    module, _, name = place.rpartition(".")
    plain = getattr(importlib.import_module(module), name)

    def function(*args: Any, **options: Any) -> Any:
        return (other if os.environ.get("RANK") == str(rank) else plain)(*args, **options)

    patch.setattr(place, function)


def test_a_process_with_other_versions_is_named_before_anything_is_written(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_rank(1, "fastmim.training.run.versions", lambda: {"torch": "1.0"}, monkeypatch)
    statuses, said = together("pretrain", photos, tmp_path / "run", SMALL, SMALL)
    assert statuses == [2, 2] and not (tmp_path / "run").exists()
    assert said.count("the versions is {'torch': '1.0'} in process 1; expected {'fastmim'") == 2


def test_a_process_with_other_images_is_named_before_anything_is_written(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fewer = tmp_path / "fewer"
    shutil.copytree(photos, fewer)
    next(fewer.glob("*.jpg")).unlink()

    def other_source(data: str, *more: Any, **options: Any) -> Source:
        return open_source(str(fewer), *more, **options)

    at_rank(1, "fastmim.pretraining.open_source", other_source, monkeypatch)
    statuses, said = together("pretrain", photos, tmp_path / "run", SMALL, SMALL)
    assert statuses == [2, 2] and not (tmp_path / "run").exists(), said
    assert said.count("the number of images is 23 in process 1; expected 24, as in process 0: start every") == 2


def test_a_process_that_does_not_see_the_run_directory(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a machine that has another disk there."""
    monkeypatch.setattr("fastmim.training.world._APPEAR_SECONDS", 0.2)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(tmp_path)
    at_rank(1, "fastmim.training.world._end_with_parent", lambda: os.chdir(elsewhere), monkeypatch)
    statuses, said = together("pretrain", photos, Path("run"), SMALL, SMALL)
    assert statuses == [1, 2]
    assert said.count("fastmim:") == 1 and "out is run, where process 1 on " in said
    assert "does not see what process 0 writes; expected a directory on a disk that all machines share" in said
    assert not (tmp_path / "run").exists() and not list(elsewhere.iterdir())


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError])
def test_a_process_out_of_memory_says_so_and_ends_the_others(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise error("tried to allocate 2.00 GiB")

    at_rank(1, "fastmim.training.loop.train_step", refuse, monkeypatch)
    statuses, said = together("pretrain", photos, tmp_path / "run", SMALL, SMALL)
    assert statuses == [1, 1] and "Traceback" not in said
    assert "process 1 is out of memory (tried to allocate 2.00 GiB); lower --micro-batch or set" in said
    assert said.count("process 0 has lost another process of the run") == 1


def test_three_processes_resume_to_the_bit(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their sums are rounded in an order, which must not depend on where a run was interrupted."""
    settings = SMALL | {"batch_size": 6, "save_every": 5}
    statuses, said = together("pretrain", photos, tmp_path / "whole", *(3 * [settings]))
    assert statuses == [0, 0, 0], said
    with monkeypatch.context() as patch:
        at_rank(1, "fastmim.training.loop.train_step", _stopped_at_step_7, patch)
        statuses, said = together("pretrain", photos, tmp_path / "stopped", *(3 * [settings]))
    assert statuses == [75, 75, 75], said
    statuses, said = together("pretrain", photos, tmp_path / "stopped", *(3 * [settings]))
    assert statuses == [0, 0, 0], said
    whole, stopped = (load_file(tmp_path / name / "weights.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)


TRAIN_STEP = loop.train_step


def _stopped_at_step_7(*args: Any, **options: Any) -> Any:
    if options["seeds"][1] == 6:
        os.kill(os.getpid(), signal.SIGTERM)
    return TRAIN_STEP(*args, **options)


def refused(*words: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["pretrain", *words])
    assert exit_.value.code == 2
    return capsys.readouterr().err


def test_wrong_numbers_of_devices(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--data", str(photos), "--out", str(tmp_path / "run")]
    said = refused(*words, "--devices", "3", capsys=capsys)
    assert "devices is 3; expected at most the 1 of this machine (on a CPU, say --device cpu)" in said
    assert "devices is 0" in refused(*words, "--devices", "0", capsys=capsys)
    with pytest.raises(RequestError, match="devices is 2 in one process; expected the command line"):
        fastmim.pretrain(**SMALL, data=str(photos), out=tmp_path / "run", devices=2)


def test_only_training_is_shared_by_the_gpus_of_a_machine(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []
    monkeypatch.setattr("fastmim.system.processes.num_gpus", lambda: 2)
    monkeypatch.setattr("fastmim.system.processes.run_on_devices", lambda words, count: started.append(count) or 0)

    def run(*words: str) -> None:
        with pytest.raises(SystemExit) as exit_:
            cli.main(list(words))
        assert exit_.value.code == 0

    run("pack", str(photos), str(tmp_path / "packed"), "--num-workers", "0")
    assert not started and (tmp_path / "packed").is_dir()
    run("pretrain", "--data", str(photos), "--out", str(tmp_path / "run"))
    run("finetune", "--data", str(photos), "--out", str(tmp_path / "run"), "--devices", "all", "--dry-run")
    run("pretrain", "--data", str(photos), "--out", str(tmp_path / "run"), "--device", "cpu", "--dry-run")
    assert started == [2, 2]


def test_a_plan_for_two_processes_is_printed_once(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fork_devices(tmp_path / "run.log", monkeypatch)
    with fork("pretrain", photos, tmp_path / "run", SMALL | {"devices": 2}, "--dry-run") as run:
        said, _ = run.communicate()
    assert run.returncode == 0 and said.count("at once on each of 2 processes") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 9}, "batch_size is 9; expected a multiple of the 2 processes: take 8 or 10"),
        (
            {"cuda_graphs": True},
            "cuda_graphs is True on cpu for 2 processes without compilation; expected one on a CUDA",
        ),
        (
            {"batch_size": 12, "masks_per_image": 4},
            "batch_size is 12; expected a multiple of the 2 processes times 4 copies of an image: take 8 or 16",
        ),
    ],
)
def test_what_two_processes_cannot_train(photos: Path, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    statuses, said = together("pretrain", photos, tmp_path / "run", SMALL | settings, SMALL | settings)
    assert statuses == [2, 2] and message in said
    assert not (tmp_path / "run").exists()


def test_the_place_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert find_place() == Place()
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(RequestError, match="WORLD_SIZE is 4 without RANK, MASTER_ADDR, MASTER_PORT; expected"):
        find_place()
    for name, value in {"RANK": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    assert find_place() == Place(3, 4, 0, 1)
    monkeypatch.setenv("RANK", "4")
    with pytest.raises(RequestError, match="RANK is 4; expected 0 to 3, since WORLD_SIZE is 4"):
        find_place()
    monkeypatch.setenv("RANK", "two")
    with pytest.raises(RequestError, match="expected whole numbers, as torchrun sets them"):
        find_place()


def test_a_step_of_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    slurm = {
        "PROCID": "5",
        "STEP_NUM_TASKS": "8",
        "LOCALID": "1",
        "STEP_TASKS_PER_NODE": "4(x2)",
        "STEP_NODELIST": "gpu[003-004]",
        "JOB_ID": "1234567",
    }
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    for name in VARIABLES:  # restored afterwards
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    assert find_place() == Place(5, 8, 1, 4)
    assert os.environ["MASTER_ADDR"] == "gpu003" and os.environ["MASTER_PORT"] == "34567"
    assert [first_host(hosts) for hosts in ("a", "a,b", "n[1,3]", "n[01-20],m2")] == ["a", "a", "n1", "n01"]


def test_a_pack_is_made_by_one_process(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RequestError, match="pack was started in 2 processes; expected one, which uses all cores of"):
        fastmim.pack(photos, tmp_path / "packed")
    assert not list(tmp_path.iterdir())


def test_nobody_at_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    expect_refusal(monkeypatch, port=1)


def test_a_process_that_dies_before_all_have_met(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its store answers, and it was never seen."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False)
    expect_refusal(monkeypatch, port=store.port)


def expect_refusal(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    """Be the second of two processes."""
    monkeypatch.setattr("fastmim.training.world._FIND_SECONDS", 1)
    env = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    message = rf"the 2 processes did not find each other at 127.0.0.1:{port} within 1 s"
    with pytest.raises(RequestError, match=message), joined():
        pass


if sys.platform != "linux":
    pytest.skip("needs /proc", allow_module_level=True)
