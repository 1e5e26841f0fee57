"""Config files: everything wrong is told at once, and what is right survives a round trip."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.config import DataConfig
from data_pipeline.errors import ConfigError, Problem, UsageError
from launch.config import (
    COMMAND_LINE,
    diff,
    dump_config,
    explain,
    kind_of,
    read_config,
    schema,
    shipped_config,
)
from launch.yaml_file import parse_value
from pretrain.config import RunConfig, plan

TINY = shipped_config("train/tiny-cpu.yaml")
SMALLEST = "name: x\ndata: {shards: d}\n"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


def problems_of(path: Path, *overrides: str, **more: object) -> dict[str, Problem]:
    with pytest.raises(ConfigError) as caught:
        read_config(path, overrides, RunConfig, **more)  # type: ignore[arg-type]
    return {problem.key: problem for problem in caught.value.problems}


def test_everything_wrong_is_told_at_once_with_line_and_nearest_key(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "name: x\ndata:\n  shards: d\n  frames: sixteen\noptim:\n  learning_rate: 0.1\n"
        "train:\n  global_batch: 100\n  micro_batch: 32\nmodel: {encoder: {preset: vit_smal}}\n",
    )
    found = problems_of(path, "train.log_every=0")
    assert set(found) == {
        "data.frames",
        "optim.learning_rate",
        "train.global_batch",
        "model.encoder.preset",
        "train.log_every",
    }
    assert found["data.frames"].file == f"{path}:4"
    assert "whole number" in found["data.frames"].need
    assert found["optim.learning_rate"].file == f"{path}:6"
    assert found["optim.learning_rate"].try_[0] == "optim.lr"
    assert found["train.global_batch"].try_ == (96, 128)
    assert found["train.global_batch"].file == f"{path}:8"
    assert found["model.encoder.preset"].try_[0] == "vit_small"
    assert found["train.log_every"].file == COMMAND_LINE


@pytest.mark.parametrize(
    ("wrong", "key", "nearest"),
    [
        ("lr: 1", "lr", "optim.lr"),
        ("optim: {weight_decy: 1}", "optim.weight_decy", "optim.weight_decay"),
        ("train: {zero_stage: 1}", "train.zero_stage", "strategy.zero_stage"),
        ("strategy: {kind: deepspeed, zerostage: 1}", "strategy.zerostage", "strategy.zero_stage"),
        ("objective: {masks: [{block: 1}]}", "objective.masks.0.block", "objective.masks.0.blocks"),
    ],
)
def test_an_unknown_key_names_the_nearest_valid_one(
    tmp_path: Path, wrong: str, key: str, nearest: str
) -> None:
    found = problems_of(write(tmp_path, SMALLEST + wrong + "\n"))
    assert nearest in found[key].try_


def test_an_unknown_key_far_from_all_lists_the_valid_ones(tmp_path: Path) -> None:
    found = problems_of(write(tmp_path, SMALLEST + "optim: {qqqq: 1}\n"))
    assert "lr, start_lr, warmup_steps" in found["optim.qqqq"].need


def test_the_keys_of_a_kind_are_named_without_the_kind(tmp_path: Path) -> None:
    found = problems_of(write(tmp_path, SMALLEST + "strategy: {kind: single, zero_stage: 1}\n"))
    assert "strategy.zero_stage" in found
    assert not any("single" in key for key in found)


def test_an_unknown_kind_lists_the_kinds(tmp_path: Path) -> None:
    found = problems_of(write(tmp_path, SMALLEST + "strategy: {kind: deepsped}\n"))
    assert found["strategy.kind"].try_ == ("deepspeed",)


def test_a_section_without_its_kind_has_the_default_kind(tmp_path: Path) -> None:
    config = read_config(write(tmp_path, SMALLEST + "strategy: {zero_stage: 2}\n"), [], RunConfig)
    assert config.strategy.kind == "deepspeed"


def test_a_rule_that_speaks_of_a_wrong_setting_waits_until_it_is_right(tmp_path: Path) -> None:
    text = SMALLEST + "train: {micro_batch: many, global_batch: 100, steps: 5}\noptim: {warmup_steps: 9}\n"
    assert set(problems_of(write(tmp_path, text))) == {"train.micro_batch", "optim.warmup_steps"}


def test_a_rule_of_the_caller_is_told_with_the_rest(tmp_path: Path) -> None:
    text = SMALLEST + "train: {micro_batch: 16, global_batch: 32}\noptim: {lrr: 1}\n"
    found = problems_of(write(tmp_path, text), rules=[lambda config: plan(config, 3)])
    assert set(found) == {"optim.lrr", "train.global_batch"}
    assert "3 ranks" in found["train.global_batch"].need


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("name: [1\n", ":2", "valid YAML"),
        ("name: x\nname: y\n", ":2", "stands at line 1"),
        ("name: x\ndata:\n  shards: a\n  shards: b\n", ":4", "stands at line 3"),
        ("- name\n", "", "key: value"),
        ("", "", "empty"),
        ("1: x\n", ":1", "text"),
        ("name: &a {b: *a}\n", ":1", "leads back"),
    ],
)
def test_a_file_that_is_no_config_is_a_sentence(tmp_path: Path, text: str, line: str, said: str) -> None:
    path = write(tmp_path, text)
    problem = next(iter(problems_of(path).values()))
    assert problem.file == f"{path}{line}"
    assert said in problem.need


def test_a_missing_file_names_the_nearest_one() -> None:
    with pytest.raises(UsageError, match=r"did you mean .*tiny-cpu\.yaml"):
        read_config(TINY.with_name("tiny_cpu.yml"), [], RunConfig)


def test_an_override_without_equals_is_a_sentence() -> None:
    assert "key=value" in problems_of(TINY, "train.steps")["train.steps"].need


def test_overrides_reach_into_lists_and_replace_whole_sections() -> None:
    config = read_config(
        TINY, ["objective.masks.1.blocks=3", "strategy={kind: single}", "optim.lr=2e-3"], RunConfig
    )
    assert config.objective.masks[1].blocks == 3
    assert config.strategy.kind == "single"
    assert config.optim.lr == 2e-3


def test_an_override_may_name_what_the_file_leaves_to_its_default() -> None:
    assert read_config(TINY, ["probe.eval_clips=7"], RunConfig).probe.eval_clips == 7


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("5.25e-4", 5.25e-4),
        ("1e5", 1e5),
        (".5", 0.5),
        ("3", 3),
        ("null", None),
        ("2024-01-01", "2024-01-01"),
        ("2:30:00", "2:30:00"),
        ("s3://b/k", "s3://b/k"),
        ("1.2.3", "1.2.3"),
    ],
)
def test_values_are_read_as_people_mean_them(text: str, value: object) -> None:
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


@pytest.mark.parametrize("name", ["train/tiny-cpu.yaml", "train/vits16-16f.yaml"])
def test_a_dump_and_an_explanation_are_runnable_and_equal(tmp_path: Path, name: str) -> None:
    config = read_config(shipped_config(name), [], RunConfig)
    for text in (dump_config(config), explain(config)):
        assert read_config(write(tmp_path, text), [], RunConfig) == config


@settings(max_examples=50, deadline=None)
@given(
    lr=st.floats(1e-12, 1e3, allow_nan=False),
    name=st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,20}\Z"),
    shards=st.text(st.characters(codec="utf-8", exclude_characters="$", exclude_categories=("Cc", "Cs"))),
)
def test_any_value_survives_the_round_trip(
    tmp_path_factory: pytest.TempPathFactory, lr: float, name: str, shards: str
) -> None:
    config = RunConfig.model_validate({"name": name, "data": {"shards": shards}, "optim": {"lr": lr}})
    path = tmp_path_factory.mktemp("round") / "run.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert read_config(path, [], RunConfig) == config


def test_diff_names_dotted_keys_of_what_differs() -> None:
    before = read_config(TINY, [], RunConfig)
    after = read_config(TINY, ["optim.lr=2", "objective.masks.0.blocks=5"], RunConfig)
    assert diff(before, after) == [("objective.masks.0.blocks", 8, 5), ("optim.lr", 1e-3, 2.0)]
    assert diff(before, before) == []


def test_the_kind_of_a_file_is_told_by_its_keys() -> None:
    assert kind_of(TINY) == "train"
    assert kind_of(shipped_config("data/demo.yaml")) == "data"


def test_data_configs_are_read_by_the_same_rules(tmp_path: Path) -> None:
    path = write(tmp_path, "name: x\nout: y\nsource: [a]\nencode: {short_side: 61, preset: fastest}\n")
    with pytest.raises(ConfigError) as caught:
        read_config(path, [], DataConfig)
    found = {problem.key: problem for problem in caught.value.problems}
    assert {"source", "sources", "encode.short_side", "encode.preset"} == set(found)
    assert found["source"].try_ == ("sources",)


def test_the_schema_names_every_section() -> None:
    assert '"optim"' in schema("train")
    assert '"encode"' in schema("data")


@pytest.mark.parametrize("address", ["http://ann:s3cret@host:5000", "https://token-s3cret@host"])
def test_an_address_with_credentials_is_refused_without_repeating_them(tmp_path: Path, address: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"name: a\ndata: {{shards: x}}\ntracker: {{uri: '{address}'}}\n")
    with pytest.raises(ConfigError, match=r"tracker\.uri") as caught:
        read_config(file, [], RunConfig)
    assert "s3cret" not in str(caught.value)
    assert "environment" in str(caught.value)


@pytest.mark.parametrize(
    "text", ["12345678901234567e89", "00000000000000000008", "089", "1e5", "0x1f", "null", "2:30"]
)
def test_ids_that_look_like_numbers_stay_text(tmp_path: Path, text: str) -> None:
    """Sample ids are hexadecimal: some have digits alone, or digits around one e."""
    config = read_config(TINY, [f'data.exclude=["{text}"]'], RunConfig)
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert read_config(tmp_path / "config.yaml", [], RunConfig).data.exclude == (text,)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "data.shards=http://127.0.0.1:9/x",
            r"data\.shards is .http://….: need a folder, or an s3:// address",
        ),
        ("seed=18446744073709551616", r"seed.*less than"),
    ],
)
def test_what_cannot_be_is_told(override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_config(TINY, [override], RunConfig)


def test_numbers_with_leading_zeros_are_numbers() -> None:
    assert [parse_value(text) for text in ("089", "010", "-07", "0x1F", "0b11", "1_000")] == [
        89,
        10,
        -7,
        31,
        3,
        1000,
    ]


def test_another_kind_of_a_section_leaves_the_files_settings_of_the_last_one_behind() -> None:
    config = read_config(TINY, ["strategy.kind=single"], RunConfig)
    assert config.strategy.kind == "single", "the file's zero_stage is of deepspeed"
    pixel = read_config(TINY, ["objective.kind=pixel", "objective.normalise=false"], RunConfig)
    assert pixel.objective.kind == "pixel" and not pixel.objective.normalise
    assert len(pixel.objective.masks) == 2 and pixel.objective.masks[0].spatial_scale == (0.1, 0.1), (
        "what both kinds know stays"
    )
    future = read_config(TINY, ["objective.kind=future_latent"], RunConfig)
    assert future.objective.kind == "future_latent"
    with pytest.raises(ConfigError, match=r"strategy\.zero_stage"):
        read_config(TINY, ["strategy.kind=single", "strategy.zero_stage=1"], RunConfig)


def test_a_home_folder_is_written_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also inside quotes, and after `key=`, where shells leave it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "data.yaml"
    file.write_text("name: set\nout: ~/sets/a\nsources: []\n")
    found = read_config(file, ["sources=[~/clips, s3://bucket/~/clips]"], DataConfig)
    assert (found.out, found.sources) == (f"{tmp_path}/sets/a", (f"{tmp_path}/clips", "s3://bucket/~/clips"))


def test_a_config_of_the_other_kind_is_said_to_be_one() -> None:
    """And not told key by key."""
    with pytest.raises(UsageError, match=r"folder\.yaml is a data config; this command takes a train config"):
        read_config(shipped_config("data/folder.yaml"), [], RunConfig)
    with pytest.raises(UsageError, match=r"tiny-cpu\.yaml is a train config; this command takes a data"):
        read_config(shipped_config("train/tiny-cpu.yaml"), [], DataConfig)
