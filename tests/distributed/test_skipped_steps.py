"""A loss that is not finite on one of two ranks, in the whole loop: all skip it, write it down, go on."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import EXIT_LOST_PEER
from pretrain.tracking.jsonl import read_metrics
from tests.distributed.test_hangs import config_of, start
from tests.distributed.test_ranks import curve

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes through /proc"),
]
STEPS, BAD, CLIPS, MICRO_BATCH = 12, 5, 8, 2

# In every rank, each micro-batch's ids are written down; on rank 1 the loss of some is no number.
POISON = """
if is_rank:
    import json
    from pathlib import Path
    from pretrain.strategy.base import Engine
    loss, seen = Engine.loss, Path(os.environ["SEEN"]) / os.environ["RANK"]
    first, last = map(int, os.environ["POISONED"].split("-"))
    def poison(self, batch, targets):
        output, step = loss(self, batch, targets), batch.step + 1
        before = poison.step == step
        poison.step = step
        if os.environ["RANK"] == "1" and step == int(os.environ["DIES_AT"]):
            os.kill(os.getpid(), 9)
        is_bad = os.environ["RANK"] == "1" and first <= step <= last and before
        with seen.open("a") as file:
            print(json.dumps([step, is_bad, list(batch.keys)]), file=file)
        return output._replace(loss=output.loss * float("inf")) if is_bad else output
    poison.step = 0
    Engine.loss = poison
"""


def train(dataset: Path, out: Path, poisoned: str, dies_at: int = 0, **changes: Any) -> subprocess.Popen[str]:
    """Two ranks, two micro-batches each; the second of rank 1 has no finite loss at the `poisoned` steps."""
    out.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEEN", str(out))
        patch.setenv("POISONED", poisoned)
        patch.setenv("DIES_AT", str(dies_at))
        settings = {"steps": STEPS, "checkpoint_every": BAD - 1, "micro_batch": MICRO_BATCH}
        return start(config_of(dataset, out, train={**settings, **changes}), POISON)


def skipped(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "skipped_steps.jsonl").read_text().splitlines()]


def seen(out: Path, step: int) -> tuple[set[str], set[str]]:
    """The ids of all micro-batches of a step, and of those that were poisoned."""
    rows = [json.loads(line) for rank in "01" for line in (out / rank).read_text().splitlines()]
    of_step = [(is_bad, ids) for number, is_bad, ids in rows if number == step]
    return {key for _, ids in of_step for key in ids}, {key for bad, ids in of_step if bad for key in ids}


@pytest.fixture(scope="module")
def whole(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run with one such step, to its end, and what it printed; read only."""
    out = tmp_path_factory.mktemp("whole")
    process = train(small_dataset, out, f"{BAD}-{BAD}")
    printed = process.communicate(timeout=150)[0]
    assert process.returncode == 0, printed
    return out, printed


def test_all_ranks_skip_the_step_and_its_samples_are_named(whole: tuple[Path, str]) -> None:
    out, printed = whole
    run = out / "tiny"
    assert f"step {BAD} skipped: a gradient was not finite (1 in a row)" in printed
    (row,) = skipped(run)
    everybody, suspects = seen(out, BAD)
    assert (row["step"], row["losses"]) == (BAD, ["inf"])
    assert (set(row["ids"]), len(row["ids"])) == (everybody, CLIPS)
    assert (set(row["suspects"]), len(row["suspects"])) == (suspects, MICRO_BATCH)
    lines = {line["step"]: line for line in read_metrics(run)}
    assert [step for step, line in lines.items() if line["loss"] is None] == [BAD]
    assert [lines[step]["optim/skipped_steps"] for step in (BAD - 1, BAD, STEPS)] == [0, 1, 1]


def test_what_is_told_at_the_end_has_numbers_that_any_reader_can_read(whole: tuple[Path, str]) -> None:
    out, printed = whole
    assert "loss inf" not in printed and "loss nan" not in printed
    result = json.loads((out / "tiny" / "result.json").read_text(), parse_constant=pytest.fail)
    losses = {line["step"]: line["loss"] for line in read_metrics(out / "tiny") if line["loss"] is not None}
    last = [loss for step, loss in losses.items() if step > 0.9 * max(losses)]
    assert result["loss"] == pytest.approx(sum(last) / len(last)), "of the last tenth of the steps"


@pytest.mark.slow
def test_killed_after_it_the_run_goes_on_to_the_same_curve(
    whole: tuple[Path, str], small_dataset: Path, tmp_path: Path
) -> None:
    """The newest checkpoint is of before the step: it comes again, and is written down once."""
    run = tmp_path / "tiny"
    process = train(small_dataset, tmp_path, f"{BAD}-{BAD}", dies_at=BAD + 2)
    printed = process.communicate(timeout=150)[0]
    assert process.returncode == EXIT_LOST_PEER, printed
    assert [row["step"] for row in skipped(run)] == [BAD]
    process = train(small_dataset, tmp_path, f"{BAD}-{BAD}")
    printed = process.communicate(timeout=150)[0]
    assert process.returncode == 0, printed
    assert f"step {BAD} skipped" in printed
    assert curve(run) == curve(whole[0] / "tiny")
    assert skipped(run) == skipped(whole[0] / "tiny")


@pytest.mark.slow
def test_past_the_limit_in_a_row_the_run_ends(small_dataset: Path, tmp_path: Path) -> None:
    process = train(small_dataset, tmp_path, f"{BAD}-99", max_skipped_steps=2)
    printed = process.communicate(timeout=150)[0]
    assert process.returncode == 5, printed
    assert f"3 steps in a row had gradients that are not finite, up to step {BAD + 2}" in printed
    assert "Traceback" not in printed
    assert [row["step"] for row in skipped(tmp_path / "tiny")] == [BAD, BAD + 1, BAD + 2]
