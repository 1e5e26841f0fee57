"""The Dockerfile against what it is made of: paths, extras, pins. No image is built here."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from launch import provenance

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "Dockerfile").read_text()
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
# What a step does, without the lines that say why.
STEPS = re.findall(r"^([A-Z]+) ((?:.*\\\n)*.*)$", "\n".join(
    line for line in TEXT.splitlines() if not line.startswith("#")), re.MULTILINE)  # fmt: skip


def steps(kind: str) -> list[str]:
    return [text for name, text in STEPS if name == kind]


def default(name: str) -> str:
    return next(text.partition("=")[2] for text in steps("ARG") if text.startswith(f"{name}="))


def copied() -> list[str]:
    found = [text.split()[:-1] for text in steps("COPY") if not text.startswith("--from")]
    return [name for names in found for name in names]


def test_everything_that_is_copied_is_there_and_nothing_else_reaches_the_engine() -> None:
    for name in copied():
        assert (ROOT / name).exists(), name
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert lines[0] == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == set(copied())


def test_packages_that_a_wheel_holds_are_copied() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert set(wheel["only-include"]) <= set(copied())
    assert {"README.md", "LICENSE"} <= set(copied()), "pyproject.toml names them"


@pytest.mark.parametrize("chosen", ["data,scenes,train", "data", "train"])
def test_the_libraries_are_those_of_the_extras_and_pinned(chosen: str, tmp_path: Path) -> None:
    assert default("EXTRAS") == "data,scenes,train"
    step = next(text for text in steps("RUN") if "requirements.txt" in text)
    program, _, install = step.partition(" > requirements.txt")
    assert "--constraint constraints.txt --requirement requirements.txt" in install
    env = {
        **os.environ,
        "EXTRAS": chosen,
        "MORE": default("MORE"),
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
    }
    (tmp_path / "python").symlink_to(sys.executable)
    listed = subprocess.run(
        ["sh", "-c", program], cwd=ROOT, env=env, capture_output=True, text=True, check=True
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(line for name in chosen.split(",") for line in EXTRAS[name])]
    assert listed.stdout.splitlines() == [*wanted, "ray[default]"]


def test_a_run_of_the_image_tells_the_commit_that_it_was_built_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = next(text for text in steps("RUN") if provenance.FROZEN_FILE in text)
    program = re.search(r'python -I -c "(.*?)" "\$\{COMMIT\}"', step.replace("\\\n", "\n"), re.DOTALL)
    assert program is not None
    stand_in = tmp_path / "launch"
    stand_in.mkdir()
    (stand_in / "__init__.py").touch()
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {program[1]}"
    subprocess.run([sys.executable, "-I", "-c", code, "0123abc"], check=True)
    monkeypatch.setattr(provenance, "OURS", stand_in / "provenance.py")
    assert provenance.source()["commit"] == "0123abc"
    assert json.loads((stand_in / provenance.FROZEN_FILE).read_text()).keys() == provenance.source().keys()


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("useradd") is None, reason="needs root, and Debian's passwd"
)
@pytest.mark.parametrize("before", ["", "ubuntu:x:1000:"])
def test_its_user_is_made_where_the_base_has_one_of_that_number(before: str, tmp_path: Path) -> None:
    """The step's own commands, on the files of another root than this machine's."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "home").mkdir()
    user = f"{before}1000:Ubuntu:/home/ubuntu:/bin/bash\n" if before else ""
    files = {"passwd": f"root:x:0:0::/root:/bin/sh\n{user}", "shadow": "root:*:19000::::::\n"}
    files["group"] = f"root:x:0:\n{before}\n" if before else "root:x:0:\n"
    for name, text in (files | {"gshadow": "", "login.defs": "USERGROUPS_ENAB yes\n"}).items():
        (tmp_path / "etc" / name).write_text(text)
    if before:
        with (tmp_path / "etc" / "shadow").open("a") as file:
            file.write("ubuntu:*:19000::::::\n")
    step = next(text for text in steps("RUN") if "useradd" in text).replace("\\\n", " ")
    own = " && ".join(
        part for part in step.split(" && ") if re.search("getent|groupadd|useradd", part) is not None
    )
    elsewhere = "".join(
        f'{tool}() {{ command {tool} --prefix "$ROOT" "$@"; }}\n'
        for tool in ("useradd", "groupadd", "userdel", "groupdel")
    )
    looked_up = 'getent() { grep "^[^:]*:[^:]*:$2:" "$ROOT/etc/$1"; }\n'
    done = subprocess.run(
        ["sh", "-euc", elsewhere + looked_up + own],
        env={**os.environ, "ROOT": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name in ("passwd", "group"):
        lines = (tmp_path / "etc" / name).read_text().splitlines()
        assert [line.split(":")[0] for line in lines if line.split(":")[2] == "1000"] == ["foreframe"]


def test_it_runs_as_a_user_without_rights_that_pods_are_given_too() -> None:
    from launch.submit.kubernetes.settings import KubernetesSettings

    assert steps("USER") == [f"{KubernetesSettings.model_fields['run_as'].default}:1000"]
    assert steps("ENTRYPOINT") == ['["foreframe"]']
    assert not re.search(r"openssh|ffmpeg|git ", "".join(steps("RUN")))
    assert all(":" in default("BASE") and not default("BASE").endswith(":latest") for _ in steps("FROM"))
