from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from data_pipeline.config import DataConfig

CONFIGS = Path(__file__).parents[2] / "configs" / "data"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_configs_are_valid(path: Path) -> None:
    config = DataConfig.model_validate(yaml.safe_load(path.read_text()))
    assert config.num_frames(config.cut.length_s) == config.cut.length_s * config.encode.fps


def test_unknown_keys_and_odd_sizes_are_refused_together() -> None:
    with pytest.raises(ValidationError) as caught:
        DataConfig.model_validate(
            {"name": "t", "out": "o", "sources": ["s"], "cutt": {}, "encode": {"short_side": 65}}
        )
    assert {error["loc"][0] for error in caught.value.errors()} == {"cutt", "encode"}


def test_the_fingerprint_is_of_what_shapes_the_data_only() -> None:
    base = DataConfig(name="t", out="o", sources=("s",))
    assert (
        base.fingerprint() == base.model_copy(update={"out": "x", "max_failed_fraction": 0.5}).fingerprint()
    )
    assert (
        base.fingerprint()
        != base.model_copy(update={"encode": base.encode.model_copy(update={"crf": 20})}).fingerprint()
    )


def test_pictures_count_in_the_fingerprint_only_where_they_are_taken() -> None:
    plain = {"name": "t", "out": "o", "sources": ("s",)}
    known = "087af01f7eae79d9"  # as the release before the key wrote it into dataset.json
    assert DataConfig(**plain).fingerprint() == DataConfig(**plain, pictures=False).fingerprint() == known
    with_pictures = DataConfig(**plain, pictures=True)
    assert with_pictures.fingerprint() != known
    assert with_pictures.encode_fingerprint() == DataConfig(**plain).encode_fingerprint()
    assert (DataConfig(**plain).picture_s, with_pictures.picture_s) == (None, 1 / 8)


def test_every_key_is_described() -> None:
    def check(schema: dict, path: str) -> None:
        for name, field in schema["properties"].items():
            assert field.get("description") or "$ref" in field, f"{path}{name} has no description"

    schema = DataConfig.model_json_schema()
    check(schema, "")
    for name, part in schema["$defs"].items():
        check(part, f"{name}.")
