"""The report: whole and self-contained for any run, with nothing of the data able to act in it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_pipeline.errors import CheckpointError, DataError
from pretrain import report
from pretrain.config import RunConfig
from pretrain.curves import Picture, draw_curves
from pretrain.tracking.jsonl import read_metrics

EVIL = '<script>alert(\'x\')</script>"><img src=x onerror="alert(1)">.mp4'
PROBE = {
    "kind": "states",
    "step": 40,
    "num_train_clips": 60,
    "num_eval_clips": 100,
    "data": EVIL,
    "units": {"position": "R²", "velocity": "R²", "shape": "share right"},
    "how": "ridge",
    "rows": [
        {"encoder": "trained", "scores": {"position": 0.75, "velocity": -0.001, "shape": 0.4}},
        {"encoder": "untrained", "scores": {"position": 0.62, "velocity": None, "shape": 0.44}},
        {"encoder": "mean of the train clips", "scores": {"position": 0.0, "velocity": 0.0, "shape": 0.43}},
    ],
}


def _line(step: int, std: float = 0.9, loss: float | None = 0.5) -> dict[str, Any]:
    return {
        "step": step,
        "loss": loss,
        "health/target_std": std,
        "health/target_rankme": 40.0,
        "perf/clips_per_s": 40.0,
        "perf/step_ms": 800.0,
        "data/wait_share": 0.1,
        "time_s": 2.0 * step,
    } | ({"health/target_std_untrained": std, "health/target_rankme_untrained": 60.0} if step == 1 else {})


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder whose pictures need neither a data set nor a checkpoint."""
    folder, data = tmp_path / "a run", tmp_path / "data"
    folder.mkdir()
    data.mkdir()
    config = RunConfig.model_validate({"name": "tiny", "data": {"shards": str(data)}, "train": {"steps": 40}})
    (folder / "config.yaml").write_text(json.dumps(config.model_dump(mode="json")))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(_line(s)) + "\n" for s in range(1, 41)))

    def draw(at: Path, _: object) -> tuple[list[Picture], list[str]]:
        (at / "pictures").mkdir(exist_ok=True)
        Image.new("RGB", (40, 40), "red").save(at / "pictures" / "masks-1.png")
        drawn = draw_curves(read_metrics(at), at / "pictures")
        return [*drawn, Picture(at / "pictures" / "masks-1.png", "Masks", f"of {EVIL}")], [
            f"nothing of {EVIL}"
        ]

    monkeypatch.setattr(report, "draw_pictures", draw)
    return folder


class _Page(HTMLParser):
    """Tags and addresses of a page, and whether every tag that is opened is closed."""

    VOID = frozenset({"meta", "img", "br", "path", "use"})

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), f"{name} on {tag}"
            if name in {"src", "href", "xlink:href"}:
                self.addresses.append(value or "")
            if name == "id":
                self.ids.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def _parse(path: Path) -> tuple[str, _Page]:
    text = path.read_text(encoding="utf-8")
    found = _Page()
    found.feed(text)
    assert found.open == []
    return text, found


def test_a_report_is_one_file_that_fetches_nothing(run: Path) -> None:
    (run / "probe.json").write_text(json.dumps(PROBE))
    path = report.write_report(run)
    text, found = _parse(path)
    assert path == run / "report.html"
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in found.addresses)
    assert "script" not in found.tags
    assert "link" not in found.tags
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert found.tags.count("svg") == 4
    assert len(found.ids) == len(set(found.ids))
    assert path.stat().st_size < 5_000_000


def test_nothing_that_comes_from_data_can_act(run: Path) -> None:
    (run / "probe.json").write_text(json.dumps(PROBE))
    (run / "provenance.json").write_text(
        json.dumps(
            {
                "host": EVIL,
                "versions": {EVIL: EVIL},
                "datasets": [{"name": EVIL, "num_clips": 3, "fingerprint": EVIL, "weight": 1.0}],
            }
        )
    )
    letters = run.parent / "data" / "dead_letters.jsonl"
    letters.write_text(json.dumps({"uri": EVIL, "reason": f"{EVIL} http://ann:pw@host/x"}) + "\nhalf a li")
    text, found = _parse(report.write_report(run))
    assert "<script" not in text
    assert "onerror=&quot;" in text
    assert "ann:pw" not in text
    assert "http://***@host/x" in text
    assert found.tags.count("img") == 1


def test_a_run_that_has_just_begun_says_what_is_missing(run: Path) -> None:
    (run / "metrics.jsonl").unlink()
    text, _ = _parse(report.write_report(run))
    assert "0 of 40 steps so far" in text
    assert "foreframe probe" in text
    assert "no probe yet" in text
    assert "unfinished" in text


def test_an_unfinished_run_is_told_how_to_go_on(run: Path) -> None:
    (run / "metrics.jsonl").write_text("".join(json.dumps(_line(s)) + "\n" for s in range(1, 11)) + '{"st')
    text, _ = _parse(report.write_report(run))
    assert "10 of 40 steps so far" in text
    assert re.search(r"foreframe train &#x27;.*a run/config.yaml&#x27;", text)


def test_the_probe_stands_beside_the_untrained_row_with_its_gain(run: Path) -> None:
    (run / "probe.json").write_text(json.dumps(PROBE))
    text, _ = _parse(report.write_report(run))
    assert '<td>0.75<small class="good">+0.13</small></td>' in text
    assert "<td>untrained</td><td>0.62</td><td>–</td>" in text
    assert "<td>0.00</td>" in text  # −0.001 has no minus


def test_a_run_called_run_has_its_folder_in_the_title(run: Path) -> None:
    named = run.rename(run.parent / "run")
    config = named / "config.yaml"
    before = json.loads(config.read_text())
    config.write_text(json.dumps(before | {"name": "run"}))
    text, _ = _parse(report.write_report(named))
    assert f"<title>{named.parent.name}/run: foreframe</title>" in text


def test_another_file_can_be_named(run: Path, tmp_path: Path) -> None:
    path = report.write_report(run, out=tmp_path / "elsewhere" / "page.html")
    assert path.exists()
    assert not (run / "report.html").exists()


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        report.write_report(tmp_path / "nothing")
    with pytest.raises(CheckpointError):
        report.write_report(tmp_path)


def test_a_damaged_probe_is_a_sentence(run: Path) -> None:
    (run / "probe.json").write_text("{")
    with pytest.raises(DataError, match=r"probe\.json cannot be read"):
        report.write_report(run)


def test_credentials_of_the_config_are_not_shown(run: Path) -> None:
    plain = json.loads((run / "config.yaml").read_text())
    plain["tracker"]["uri"] = "http://ann:hunter2@host:5000"
    (run / "config.yaml").write_text(json.dumps(plain))
    text, _ = _parse(report.write_report(run))
    assert "hunter2" not in text


# sentences


@pytest.mark.parametrize(
    ("lines", "word"),
    [
        ([], "not looked at"),
        ([_line(1), _line(40)], "healthy"),
        ([_line(1), _line(40, std=0.05)], "collapsed"),
        ([_line(1), _line(20, std=4.0), _line(40, std=1.0)], "warning"),
        ([_line(1), _line(40, loss=None)], "diverged"),
    ],
)
def test_health_in_a_word(lines: list[dict[str, Any]], word: str) -> None:
    assert report.judge_health(lines, 0.1).word == word


def test_what_was_learned_names_gains_and_leaves_out_what_is_at_chance() -> None:
    said = report.say_learned(PROBE)
    assert "position 0.75 (untrained 0.62)" in said
    assert "shape" not in said


def test_a_probe_without_gain_says_so() -> None:
    rows = [
        {"encoder": e, "scores": {"top-1": v}}
        for e, v in (("trained", 0.5), ("untrained", 0.7), ("chance", 0.1))
    ]
    probe: dict[str, Any] = {"kind": "retrieval", "rows": rows, "num_train_clips": 80, "num_eval_clips": 20}
    assert report.say_learned(probe).startswith("Nothing is read better")
    rows[0]["scores"] = {"top-1": 0.78}
    assert "no difference" in report.say_learned(probe)
    assert "top-1 0.78" in report.say_learned(probe | {"num_train_clips": 800})
    assert "not been probed" in report.say_learned(None)
