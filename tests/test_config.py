"""Settings: one definition for CLI, YAML and Python; wrong values are refused with a remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fastmim import config as configs
from fastmim.errors import RequestError
from fastmim.method.settings import PretrainConfig


def build(**settings: object) -> PretrainConfig:
    return configs.build(PretrainConfig, settings)


def test_yaml_round_trip(tmp_path: Path) -> None:
    config = build(data="photos", lr="1e-4", stages="128:0.5,160:0.5", betas=[0.9, 0.999], backbone_args={"depth": 4})
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(configs.to_mapping(config) | {"versions": {"torch": "x"}}))
    assert configs.build(PretrainConfig, configs.read(path)) == config
    assert config.sizes() == ((128, 0.5), (160, 0.5))
    assert config.lr == 1e-4


def test_later_layers_override_and_a_length_replaces_the_other() -> None:
    config = configs.build(PretrainConfig, {"epochs": 800.0, "lr": 1.0}, {"steps": 10})
    assert (config.epochs, config.steps, config.lr) == (None, 10, 1.0)


def test_command_line_numbers_reach_backbone_args_as_numbers() -> None:
    assert build(backbone_args={"depth": "4", "act_layer": "gelu"}).backbone_args == {
        "depth": 4,
        "act_layer": "gelu",
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lrr": 1}, "unknown setting 'lrr'; did you mean lr?"),
        ({"zzzzzz": 1}, "unknown setting 'zzzzzz'; see --help"),
        ({"lr": "fast"}, "lr is 'fast'; expected float"),
        ({"lr": 0}, "lr is 0.0; expected more than 0"),
        ({"epochs": float("nan")}, "epochs is nan; expected more than 0"),
        ({"steps": 1.5}, "steps is 1.5; expected int"),
        ({"steps": 0}, "steps is 0; expected at least 1"),
        ({"steps": 3, "epochs": 3}, "expected one of them"),
        ({"batch_size": 0}, "batch_size is 0; expected at least 1"),
        ({"compile": "yes"}, "compile is 'yes'; expected bool"),
        ({"target": "colour"}, "target is 'colour'; expected"),
        ({"micro_batch": "most"}, "micro_batch is 'most'; expected"),
        ({"micro_batch": 0}, "micro_batch is 0; expected at least 1"),
        ({"masking": "drops"}, "masking is 'drops'; expected"),
        ({"betas": [0.9]}, "betas is .0.9.; expected"),
        ({"crop_scale": [0.5, 0.2]}, "expected 0 < smallest <= largest <= 1"),
        ({"num_workers": -1}, "num_workers is -1; expected 0"),
        ({"trackers": "tensorbord"}, "trackers names 'tensorbord'; expected"),
        ({"warmup": "soon"}, "warmup is 'soon'; expected a duration"),
        ({"warmup": "3 furlongs"}, "warmup is '3 furlongs'; expected a duration"),
        ({"picture_every": "x"}, "picture_every is 'x'; expected a duration"),
        ({"max_bad_share": 2}, "max_bad_share is 2; expected 0 to 1"),
        ({"mask_ratio": 1}, "mask_ratio is 1.0; expected at least 0 and less than 1"),
        ({"encoder_depth": 1.5}, "encoder_depth is 1.5; expected"),
        ({"img_size": 0}, "img_size is 0; expected at least 1"),
        ({"stages": "128"}, "stages is '128'; expected SIZE:SHARE"),
        ({"stages": "128:0.5,160:0.4"}, "shares that sum to 1; these sum to 0.9"),
        ({"decoder": "²x1"}, "decoder is '²x1'; expected auto, linear or WIDTHxDEPTH"),
        ({"decoder": "256x0"}, "decoder is '256x0'; expected auto, linear or WIDTHxDEPTH"),
        ({"decoder": f"{'9' * 5000}x1"}, "decoder is '99999.*; expected auto, linear or WIDTHxDEPTH"),
        ({"stages": "0:1"}, "stages is '0:1'; expected SIZE:SHARE"),
        ({"stages": "128:1..0"}, "stages is '128:1..0'; expected SIZE:SHARE"),
        ({"seed": 2**70}, "seed is 1180591620717411303424; expected an integer of 64 bits"),
        ({"seed": 16**5000}, "seed is a number of thousands of digits; expected an integer of 64 bits"),
        ({"seed": float("inf")}, "seed is inf; expected int"),
        ({"epochs": float("inf")}, "epochs is inf; expected more than 0, and finite"),
        ({"lr": 16**5000}, "lr is a number of thousands of digits; expected float"),
        ({"warmup": "1e400"}, "warmup is '1e400'; expected a duration"),
        ({"warmup": "1.2.3"}, "warmup is '1.2.3'; expected a duration"),
        ({"warmup": "9" * 5000}, "warmup is '9999.*; expected a duration"),
        ({"betas": [0.9, 2]}, r"betas is \(0.9, 2.0\); expected two numbers of at least 0 and less than 1"),
        ({"betas": [float("nan"), 0.9]}, r"betas is \(nan, 0.9\); expected two numbers"),
        ({"weight_decay": -1}, "weight_decay is -1.0; expected 0 .none. or more"),
        ({7: 1}, "unknown setting 7; see --help"),
        ({None: 1}, "unknown setting None; see --help"),
        ({"backbone_args": {7: 1}}, r"backbone_args is \{7: 1\}; expected dict"),
        ({"backbone_args": {"depth": "[" * 5000}}, r"backbone_args.depth is '\[\[.*; expected a number, a word or"),
        ({"out": "a\0b"}, r"out is 'a\\x00b'; expected no zero byte"),
        ({"init": "a\0b"}, r"init is 'a\\x00b'; expected no zero byte"),
        ({"out": "a/" + "b" * 256}, "out is 'a/bbb.*; expected names of at most 255 bytes"),
        ({"backbone": ["x" * 999] * 999}, r"backbone is \['xxx.*\.\.\..*; expected str"),
        ({"decoder": "250x1"}, "decoder is '250x1'; expected auto, linear or WIDTHxDEPTH"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(settings: dict[Any, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as error:
        configs.build(PretrainConfig, settings)
    assert "\n" not in str(error.value) and len(str(error.value)) < 2000


def test_unreadable_config_files(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"none.yaml: No such file.*; expected a YAML file"):
        configs.read(tmp_path / "none.yaml")
    path = tmp_path / "bad.yaml"
    path.write_text("a: [")
    with pytest.raises(RequestError, match="is not YAML"):
        configs.read(path)
    path.write_bytes(b"data: \xe9\n")
    with pytest.raises(RequestError, match="is not YAML: 'utf-8' codec can't decode byte 0xe9"):
        configs.read(path)
    path.write_text("data: " + "[" * 5000)
    with pytest.raises(RequestError, match="is not YAML: .*; expected lines such as `epochs: 200`"):
        configs.read(path)
    for number in ("9" * 5001, "2026-13-77"):
        path.write_text(f"seed: {number}\n")
        with pytest.raises(RequestError, match="bad.yaml, with a value that cannot be read: .*; correct it"):
            configs.read(path)
    path.write_text("#" * 300_000)
    with pytest.raises(RequestError, match="of more than 262,144 characters; expected lines of settings"):
        configs.read(path)
    path.write_text("- a")
    with pytest.raises(RequestError, match="expected `setting: value` lines"):
        configs.read(path)
    path.write_text("lr: 1\nnull: 2\n")
    with pytest.raises(RequestError, match="bad.yaml, with the setting None; expected a name, such as `epochs: 200`"):
        configs.read(path)


@pytest.mark.parametrize("kind", ["sequences", "mappings", "merged", "its own"])
def test_aliases_do_not_fill_the_memory(tmp_path: Path, kind: str) -> None:
    """Nine lines that stand for 10^9 values, as lists, as mappings and as merged mappings; one that holds itself."""
    names = "abcdefghij"
    line = {
        "sequences": lambda a, b: f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]",
        "mappings": lambda a, b: f"{b}: &{b} {{{', '.join(f'{n}: *{a}' for n in range(10))}}}",
        "merged": lambda a, b: f"{b}: &{b} {{<<: [{', '.join([f'*{a}'] * 10)}]}}",
        "its own": lambda a, b: f"{b}: &{b} [*{b}]",
    }[kind]
    path = tmp_path / "run.yaml"
    path.write_text("\n".join(["a: &a {x: 1}", *map(line, names, names[1:])]))
    with pytest.raises(RequestError, match="aliases stand for more than 100,000 values; write the settings out"):
        configs.read(path)
    path.write_text("a: &a [1, 2]\nb: *a")
    assert configs.read(path) == {"a": [1, 2], "b": [1, 2]}


def test_objects_of_any_size_are_shown_in_a_line() -> None:
    for value in (["x" * 50] * 2000, np.zeros((50, 40, 40, 3)), [np.zeros((40, 40))] * 9):
        with pytest.raises(RequestError, match="^data is .*; expected str$") as caught:
            build(data=value)
        assert len(str(caught.value)) < 350


def test_differences_leave_out_resumable_settings() -> None:
    stored = configs.to_mapping(build(data="a", num_workers=3))
    assert configs.differences(stored, build(data="a", num_workers=0, device="cpu")) == []
    assert configs.differences(stored, build(data="b", seed=1)) == ["seed 0 -> 1"]


def test_every_setting_has_help_and_is_read() -> None:
    """Every setting is documented, and read by some module other than the settings."""
    import dataclasses

    source = Path(configs.__file__).parent
    code = "".join(path.read_text() for path in source.rglob("*.py") if path.name != "settings.py")
    own = "".join((source / room / "settings.py").read_text() for room in ("data", "training", "method"))
    for field in dataclasses.fields(PretrainConfig):
        used_by_method = field.name in ("stages", "decoder", "img_size", "trackers")
        assert used_by_method or f"config.{field.name}" in code, field.name
        assert f"    {field.name}: " in own and '"""' in own.split(f"    {field.name}: ", 1)[1].split("\n")[1], (
            field.name
        )


def test_a_later_list_or_mapping_is_taken_as_texts() -> None:
    from fastmim.studies import settings

    config = settings.build({"sweep": ["lr=1,2"], "budget": "1h"}, {"sweep": {"lr": [1, None]}, "steps": 3})
    assert (config.sweep, config.budget, config.steps) == (("lr=1,none",), None, 3)


def test_a_setting_cannot_be_named_like_a_class_variable() -> None:
    with pytest.raises(RequestError, match="unknown setting 'RESUMABLE'"):
        build(RESUMABLE=["data"])


def test_names_are_readable_in_config_files(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(configs.to_yaml(build(data="Prüfbilder/良品")), encoding="utf-8")
    assert "Prüfbilder/良品" in path.read_text(encoding="utf-8")
    assert configs.read(path)["data"] == "Prüfbilder/良品"
    assert r"\uDCDF" in configs.to_yaml(build(data="Ma\udcdf"))  # a byte that is not UTF-8
