"""What ten million samples in ten thousand shards cost before the first batch: their metadata alone."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from data_pipeline.format import (
    DATASET_FILE,
    FORMAT_VERSION,
    META,
    VIDEO,
    DatasetInfo,
    Member,
    ShardDone,
    dataset_fingerprint,
    encode_index,
    index_name,
    sha256,
    shard_stem,
    to_json,
)
from data_pipeline.storage import Storage

NUM_SHARDS, PER_SHARD, BATCH, TURNS = 10_000, 1_000, 3_072, 3
LATE = 9_000_000

# In a process of its own: seconds and memory from nothing to the ids of a global batch.
PROGRAM = """
import json, sys, time
begin_s = time.perf_counter()
from pretrain.config import RunConfig
from pretrain.data.corpus import Corpus
imported_s = time.perf_counter()
root, first, batch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
corpus = Corpus(RunConfig.model_validate({"name": "big", "data": {"shards": root}}).data, 0)
names = [corpus.name(corpus.spot(position)) for position in range(first, first + batch)]
assert len(set(names)) == batch and not any("#" in name for name in names)
took_s = time.perf_counter() - imported_s
with open("/proc/self/status") as status:  # getrusage would say its parent's peak, where that is larger
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) / 1e6
print(json.dumps({"seconds": took_s, "imports": imported_s - begin_s, "gigabytes": peak}))
"""


def write_metadata(root: Path) -> None:
    """A data set of NUM_SHARDS × PER_SHARD samples without its tars."""
    storage, done = Storage(root), []
    (root / "shards").mkdir(parents=True)
    for number in range(NUM_SHARDS):
        stem, members = shard_stem("train", number), []
        for row in range(PER_SHARD):
            key, offset = f"{number * PER_SHARD + row:020x}", row * 100_000
            members.append(Member(key, META, offset, 400, sha256(key.encode())))
            members.append(Member(key, VIDEO, offset + 1024, 90_000, sha256(key[::-1].encode())))
        index = encode_index(members)
        (root / index_name(stem)).write_bytes(index)
        done.append(ShardDone(stem, "train", PER_SHARD, PER_SHARD * 100_000, "0" * 64, sha256(index)))
    plain: dict[str, Any] = dict.fromkeys((field.name for field in dataclasses.fields(DatasetInfo)), "")
    count = NUM_SHARDS * PER_SHARD
    info = DatasetInfo(
        **{
            **plain,
            "format_version": FORMAT_VERSION,
            "name": "big",
            "fingerprint": dataset_fingerprint(done),
            "revision": 0,
            "num_videos": count,
            "num_clips": {"train": count},
            "num_shards": {"train": NUM_SHARDS},
            "num_filtered": 0,
            "num_failed": 0,
            "total_bytes": sum(shard.tar_bytes for shard in done),
            "versions": {},
            "state_names": (),
            "action_names": (),
            "shards": tuple(done),
        }
    )
    storage.publish(DATASET_FILE, to_json(info))


def measure_index(scratch: Path, row: Callable[..., dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Seconds and memory to the first batch's ids, at the start and late in the epoch."""
    write_metadata(scratch / "big")
    found: dict[int, list[dict[str, float]]] = {0: [], LATE: []}
    for first in [0, LATE] * TURNS:
        command = [sys.executable, "-c", PROGRAM, str(scratch / "big"), str(first), str(BATCH)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[first].append(json.loads(done.stdout))
    for first, results in found.items():
        case = f"10 million samples, batch of {BATCH} from sample {first:,}"
        for metric, unit in (("seconds", "s"), ("imports", "s"), ("gigabytes", "GB")):
            yield row(case, metric, unit, [result[metric] for result in results])
