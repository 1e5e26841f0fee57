"""`foreframe checkpoint`: what is listed, found damaged, removed; in a folder and in a bucket."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from data_pipeline.errors import UsageError
from data_pipeline.storage import Storage
from launch.checkpoints import list_checkpoints, prune_checkpoints, verify_checkpoints
from launch.cli import main
from launch.lock import lock_run
from launch.train import run_train
from pretrain.checkpoint import step_folders
from pretrain.checkpoint.store import Store
from pretrain.tracking.jsonl import read_metrics
from tests.small_dataset import tiny_config

SAVING = {"steps": 12, "checkpoint_every": 3, "keep_checkpoints": 4, "keep_every": 6}


@pytest.fixture(scope="module")
def whole_run(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_train(
        tiny_config(small_dataset, tmp_path_factory.mktemp("runs"), train=SAVING), quiet=True
    ).run


@pytest.fixture
def run(whole_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole_run, tmp_path / "run"))


def file_of(run: Path, step: int) -> Path:
    return next((run / "checkpoints" / f"step-{step:08d}").glob("*.safetensors"))


def damage(run: Path) -> None:
    file_of(run, 12).unlink()
    cut = file_of(run, 9)
    cut.write_bytes(cut.read_bytes()[:-4])
    flipped = bytearray(file_of(run, 6).read_bytes())
    flipped[-1] ^= 1
    file_of(run, 6).write_bytes(flipped)


def test_all_are_listed_with_what_their_manifests_and_sizes_tell(run: Path) -> None:
    rows = list_checkpoints(str(run))
    losses = {line["step"]: line["loss"] for line in read_metrics(run)}
    assert [(row.step, row.trouble, row.world_size, row.loss) for row in rows] == [
        (step, None, 1, losses[step]) for step in (12, 9, 6, 3)
    ]
    assert [row.is_latest for row in rows] == [True, False, False, False]
    assert rows[2].kept == "one of the newest 4, a multiple of 6"
    sizes = [sum(path.stat().st_size for path in folder.iterdir()) for folder in step_folders(run)]
    assert [row.num_bytes for row in rows] == sizes
    damage(run)
    (run / "checkpoints" / "step-00000003" / "manifest.json").write_text("{")
    told = {row.step: row.trouble for row in list_checkpoints(str(run))}
    assert told[6] is None, "a flipped bit shows in its hash alone"
    assert "is missing" in (told[12] or "") and "bytes of" in (told[9] or "")
    assert "no readable manifest.json" in (told[3] or "")


def test_every_damage_is_found_by_reading(run: Path) -> None:
    seen: list[tuple[int, int]] = []
    assert verify_checkpoints(str(run), None, lambda _, done, total, __: seen.append((done, total))) == (
        4,
        [],
    )
    damage(run)
    num_whole, problems = verify_checkpoints(str(run), None, lambda *_: None)
    assert num_whole == 1 and len(problems) == 3
    for step, words in ((6, "its hash differs"), (9, "bytes of"), (12, "is missing")):
        assert any(f"step-{step:08d}" in problem and words in problem for problem in problems)
    assert verify_checkpoints(str(run), 3, lambda *_: None) == (1, [])
    with pytest.raises(UsageError, match=r"no checkpoint at step 4; it has: 3, 6, 9, 12"):
        verify_checkpoints(str(run), 4, lambda *_: None)


def test_pruning_keeps_the_newest_whole_one_and_what_it_was_told(run: Path) -> None:
    gone, stays = prune_checkpoints(str(run), 1, 6, dry_run=True)
    assert ([name[-2:] for name, _ in gone], [name[-2:] for name in stays]) == (["09", "03"], ["12", "06"])
    assert len(step_folders(run)) == 4
    damage(run)
    assert prune_checkpoints(str(run), 1, None, dry_run=False)[1] == ["step-00000006"]
    assert [path.name for path in (run / "checkpoints").iterdir() if path.is_dir()] == ["step-00000006"]
    assert (run / "checkpoints" / "latest").read_text() == "step-00000006\n"
    file_of(run, 6).unlink()
    with pytest.raises(UsageError, match="no whole checkpoint: nothing is removed"):
        prune_checkpoints(str(run), 1, None, dry_run=False)


def test_a_run_that_is_being_trained_is_not_pruned(run: Path) -> None:
    with lock_run(run), pytest.raises(UsageError, match="being trained by process"):
        prune_checkpoints(str(run), 1, None, dry_run=False)
    assert len(step_folders(run)) == 4


def test_a_store_is_looked_at_and_pruned_as_a_folder_is(
    small_dataset: Path, tmp_path: Path, s3_bucket: str
) -> None:
    store = f"{s3_bucket}/tiny"
    train = {**SAVING, "checkpoint_store": store}
    run_train(tiny_config(small_dataset, tmp_path, train=train), quiet=True)
    assert [row.step for row in list_checkpoints(store) if row.trouble is None] == [12, 9, 6, 3]
    assert verify_checkpoints(store, None, lambda *_: None) == (4, [])
    prune_checkpoints(store, 2, None, dry_run=False)
    assert sorted(Store(store).listed()) == ["step-00000009", "step-00000012"]
    newest = next(name for name in Storage(store).names("checkpoints/step-00000012") if "rank" in name)
    Storage(store).remove(f"checkpoints/step-00000012/{newest}")
    prune_checkpoints(store, 2, None, dry_run=False)
    assert (Store(store).newest(), sorted(Store(store).listed())) == ("step-00000009", ["step-00000009"])


def test_the_commands_print_sentences_and_exit_codes(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["foreframe", "checkpoint", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        told = capsys.readouterr()
        return int(ended.value.code or 0), told.out, told.err

    code, out, _ = command("list", run)
    assert code == 0 and "12 latest" in out and out.count("whole") == 4
    assert command("verify", run)[:2][0] == 0
    damage(run)
    code, _, err = command("verify", run)
    assert code == 4 and "3 damaged, 1 whole" in err and "step-00000009" in err
    code, out, _ = command("prune", run, "--keep", 1, "--dry-run")
    assert code == 0 and "would remove step-00000012" in out and "kept: step-00000006" in out
    code, _, err = command("list", run.parent)
    assert code == 2 and f"{run} has" in err
    assert command("prune", run, "--keep", 0)[0] == 2
    assert json.loads((run / "checkpoints" / "step-00000006" / "manifest.json").read_text())["code"][
        "foreframe"
    ]
