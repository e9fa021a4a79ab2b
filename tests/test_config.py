"""Settings: one definition for CLI, YAML and Python; wrong values are refused with a remedy."""

from __future__ import annotations

from pathlib import Path

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
        ({"mask_ratio": 1}, "mask_ratio is 1.0; expected between 0 and 1"),
        ({"encoder_depth": 1.5}, "encoder_depth is 1.5; expected"),
        ({"img_size": 0}, "img_size is 0; expected at least 1"),
        ({"stages": "128"}, "stages is '128'; expected SIZE:SHARE"),
        ({"stages": "128:0.5,160:0.4"}, "shares that sum to 1; these sum to 0.9"),
        ({"decoder": "250x1"}, "decoder is '250x1'; expected auto, linear or WIDTHxDEPTH"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(settings: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message) as error:
        build(**settings)
    assert "\n" not in str(error.value)


def test_unreadable_config_files(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"none.yaml: No such file.*; expected a YAML file"):
        configs.read(tmp_path / "none.yaml")
    path = tmp_path / "bad.yaml"
    path.write_text("a: [")
    with pytest.raises(RequestError, match="is not YAML"):
        configs.read(path)
    path.write_text("- a")
    with pytest.raises(RequestError, match="expected `setting: value` lines"):
        configs.read(path)


def test_differences_leave_out_resumable_settings() -> None:
    stored = configs.to_mapping(build(data="a", num_workers=3))
    assert configs.differences(stored, build(data="a", num_workers=0, device="cpu")) == []
    assert configs.differences(stored, build(data="b")) == ["data 'a' -> 'b'"]


def test_every_setting_has_help_and_is_read() -> None:
    """Every setting is documented, and read by some module other than the settings."""
    import dataclasses

    source = Path(configs.__file__).parent
    code = "".join(path.read_text() for path in source.rglob("*.py") if path.name != "settings.py")
    own = "".join((source / room / "settings.py").read_text() for room in ("training", "method"))
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
