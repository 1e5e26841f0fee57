"""A config as pods read it: addresses of this machine's folders turned into those of mounted claims."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from data_pipeline.errors import Problem
from launch.submit.base import JobConfig
from launch.submit.kubernetes.settings import ClaimVolume
from pretrain.config import RunConfig

STORE, SQLITE = "s3://", "sqlite:///"
# Addresses of a config, and whether the job writes there.
OF_RUNS = {"out": True, "data.shards": False, "probe.data": False, "init.weights": False}
OF_DATA = {"out": True, "sources": False, "root": False}


@dataclass
class Addresses:
    """What pods see: each claim at its mount. problems: what they do not see. uses_store: s3:// was met."""

    volumes: Sequence[ClaimVolume]
    workdir: Path
    problems: list[Problem] = field(default_factory=list)
    uses_store: bool = False

    def inside(self, address: str, *, writes: bool = False, key: str = "") -> str:
        """The address as pods have it; one that they cannot have is noted as a problem of `key`."""
        if address.startswith(STORE):
            self.uses_store = True
            return address
        if "://" in address:
            return address
        path = Path(os.path.normpath(self.workdir / Path(address).expanduser()))
        for place, volume in self._known():
            if path.is_relative_to(place):
                if writes and volume.read_only:
                    need = f"a folder that can be written; volume {volume.claim} is read_only"
                    self.problems.append(Problem(key, need, address))
                return str(Path(volume.mount) / path.relative_to(place))
        where = ", ".join(volume.mount for volume in self.volumes) or "none"
        need = (
            f"a folder of a claim that pods mount (volumes: {where}; `here` says which folder of this "
            "machine a claim holds)" + (", or all of it ends with the pods" if writes else f", or {STORE}")
        )
        self.problems.append(Problem(key, need, address))
        return address

    def _known(self) -> Iterator[tuple[Path, ClaimVolume]]:
        """Folders that a claim holds, the deepest first: as this machine has them, and as pods have them."""
        found = [
            (Path(os.path.normpath(self.workdir / Path(volume.here).expanduser())), volume)
            for volume in self.volumes
            if volume.here is not None
        ]
        found += [(Path(volume.mount), volume) for volume in self.volumes]
        yield from sorted(found, key=lambda pair: -len(pair[0].parts))


def for_pods(config: JobConfig, addresses: Addresses) -> JobConfig:
    """The config with every address as pods have it."""
    plain = config.model_dump(mode="json")
    for key, writes in (OF_RUNS if isinstance(config, RunConfig) else OF_DATA).items():
        _rewrite(plain, key, addresses, writes)
    if isinstance(config, RunConfig):
        addresses.uses_store |= (config.train.checkpoint_store or "").startswith(STORE)
        if config.tracker.uri is not None:
            plain["tracker"]["uri"] = _tracker(config.tracker.uri, addresses)
    return type(config).model_validate(plain)


def _tracker(uri: str, addresses: Addresses) -> str:
    """A shared file as pods have it; a server on this machine is none that they reach."""
    if uri.startswith(SQLITE):
        return SQLITE + addresses.inside(uri.removeprefix(SQLITE), writes=True, key="tracker.uri")
    host = urlsplit(uri).hostname if "://" in uri else None
    if host in ("localhost", "127.0.0.1", "::1"):
        need = "an address that pods reach; there this one is the pod itself"
        addresses.problems.append(Problem("tracker.uri", need, uri))
    return uri


def _rewrite(plain: dict[str, Any], key: str, addresses: Addresses, writes: bool) -> None:
    section, _, name = key.rpartition(".")
    holder: Any = plain[section] if section else plain
    value = holder[name]
    if isinstance(value, str):
        holder[name] = addresses.inside(value, writes=writes, key=key)
    elif isinstance(value, list):
        for number, each in enumerate(value):
            place = f"{key}.{number}"
            if isinstance(each, dict):
                each["shards"] = addresses.inside(each["shards"], key=f"{place}.shards")
            else:
                value[number] = addresses.inside(each, key=place)
