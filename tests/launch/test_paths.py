"""What a person types where a file, a folder or something else may stand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipeline.errors import ConfigError, UsageError
from launch.config import find_config
from launch.doctor.hosts import hosts_in
from launch.paths import is_file, is_folder
from launch.submit.freeze import find_submission
from launch.submit.places import read_place

LONG = "a" * 300  # no file can have such a name: the system refuses to look


def test_files_and_folders_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    found = [(is_file(each), is_folder(each)) for each in (tmp_path / "f", tmp_path, tmp_path / "g", LONG)]
    assert found == [(True, False), (False, True), (False, False), (False, False)]


@pytest.mark.parametrize("asked", [find_config, read_place, lambda text: find_submission(Path(text))])
@pytest.mark.parametrize("text", [LONG, f"{LONG}/b", f"{LONG}.yaml"])
def test_a_name_that_no_file_can_have_is_refused_in_a_sentence(
    asked: Callable[[str], object], text: str
) -> None:
    with pytest.raises(UsageError, match="aaa"):
        asked(text)


def test_a_list_of_hosts_may_be_longer_than_a_file_name() -> None:
    many = [f"node-{number:04d}" for number in range(100)]
    assert list(hosts_in(",".join(many))) == many


@pytest.mark.parametrize("kind", ["[ssh]", "{ssh: 1}", "1", "~", "shh"])
def test_a_place_of_no_kind_is_refused_in_a_sentence(kind: str, tmp_path: Path) -> None:
    (tmp_path / "place.yaml").write_text(f"kind: {kind}\n")
    with pytest.raises(ConfigError, match="one of local, ssh, slurm, kubernetes, ray"):
        read_place(str(tmp_path / "place.yaml"))
