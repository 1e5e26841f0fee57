"""Versions of Python, foreframe and what it stands on, against what pyproject and constraints.txt ask for."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, requires, version

from launch.doctor.check import Check, State
from launch.provenance import source
from launch.submit.freeze import HERE, code_digest

CONSTRAINTS = HERE / "constraints.txt"
TRAIN = ("torch", "deepspeed", "xformers", "mlflow", "safetensors")
DATA = ("ray",)
BOTH = ("av", "decord", "webdataset", "numpy", "pyarrow", "s3fs", "pydantic")


def installed(names: Iterable[str]) -> dict[str, str]:
    """{name: version} of those that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def ranges(lines: Iterable[str]) -> dict[str, str]:
    """{package: range such as >=2.11,<2.14} of requirements that hold on this system, extras' too."""
    from packaging.requirements import Requirement

    found: dict[str, str] = {}
    for line in lines:
        needed = Requirement(line)
        extras = ("", "data", "train")
        if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
            found.setdefault(needed.name.lower(), str(needed.specifier))
    return found


def pins(text: str) -> dict[str, str]:
    """{package: version} of constraints.txt."""
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return {name.lower(): number for name, _, number in (line.partition("==") for line in lines if line)}


def check_python(found: str, needed: str) -> Check:
    """found: a version; needed: a range such as >=3.11."""
    from packaging.specifiers import SpecifierSet

    if SpecifierSet(needed).contains(found, prereleases=True):
        return Check("python", "pass", found)
    return Check("python", "fail", found, f"make a virtual environment with Python {needed}")


def check_foreframe(number: str | None, commit: str | None, is_changed: bool, digest: str) -> Check:
    """Which code runs here."""
    where = f"commit {commit[:10]}" if commit else "no checkout"
    found = f"{number or 'not installed'}, {where}{', changed since' if is_changed else ''}, code {digest}"
    if number is None:
        return Check("foreframe", "warn", found, "`pip install -e .` in the checkout: its needs are unknown")
    return Check("foreframe", "pass", found)


def check_packages(
    found: Mapping[str, str],
    needed: Mapping[str, str],
    pinned: Mapping[str, str],
    wanted: Iterable[str],
    required: Iterable[str],
) -> list[Check]:
    """What is as it should be in one line; what is not, a line each.

    found: installed versions; needed: ranges that pyproject asks for; pinned: versions that foreframe was
    tried with; wanted: packages to look at; required: those that must be there.
    """
    from packaging.specifiers import SpecifierSet
    from packaging.version import Version

    right, wrong, missing = [], [], []
    for name in wanted:
        if name not in found:
            missing += [name] if name in needed else []  # else not for this system, as xformers on ARM
            continue
        span, number = needed.get(name, ""), Version(found[name])
        if not SpecifierSet(span).contains(number.public, prereleases=True):
            remedy = f"`pip install -c constraints.txt '{name}{span}'`"
            wrong.append(Check(name, "fail", f"{found[name]}, need {span}", remedy))
        elif name in pinned and number.public != pinned[name]:
            told = f"{found[name]}, tried with {pinned[name]}"
            wrong.append(Check(name, "warn", told, f"`pip install {name}=={pinned[name]}`"))
        else:
            right.append(f"{name} {found[name]}")
    first = [Check("packages", "pass", ", ".join(right))] if right else []
    return [*first, *wrong, *_missing(missing, set(required))]


def _missing(names: Iterable[str], required: set[str]) -> list[Check]:
    """A line for each kind of job that lacks packages here: fails where that kind is wanted."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for name in names:
        kind = ("for training", "[train]") if name in TRAIN else ("for sharding", "[data]")
        kinds.setdefault(("for all", "") if name in BOTH else kind, []).append(name)
    checks = []
    for (what, extra), absent in kinds.items():
        state: State = "fail" if required & set(absent) else "skipped"
        remedy = f"`pip install -c constraints.txt '.{extra}'` in the checkout"
        checks.append(Check(what, state, f"not installed: {', '.join(absent)}", remedy))
    return checks


def check_versions(kind: str | None) -> tuple[list[Check], dict[str, object]]:
    """Lines of what is installed, and the facts that hosts are compared by.

    kind: `train` or `data`, which needs its packages; None asks for none in particular.
    """
    from importlib.metadata import metadata

    number = installed(["foreframe"]).get("foreframe")
    asked = requires("foreframe") if number else None
    python_range = str(metadata("foreframe")["Requires-Python"]) if number else ">=3.11"
    where = source()
    commit = where["commit"]
    digest = code_digest()
    packages = installed([*TRAIN, *DATA, *BOTH])
    text = CONSTRAINTS.read_text() if CONSTRAINTS.is_file() else ""
    required = {"train": TRAIN[:2] + TRAIN[3:] + BOTH, "data": DATA + BOTH}.get(kind or "", BOTH)
    checks = [
        check_python(platform.python_version(), python_range),
        check_foreframe(number, commit, bool(where["patch"] or where["num_untracked"]), digest),
        *check_packages(packages, ranges(asked or ()), pins(text), [*TRAIN, *DATA, *BOTH], required),
    ]
    facts: dict[str, object] = {
        "python": platform.python_version(),
        "foreframe": number,
        "code": digest,
        "commit": commit,
        **{name: packages[name] for name in (*TRAIN, *DATA) if name in packages},
    }
    return checks, facts
