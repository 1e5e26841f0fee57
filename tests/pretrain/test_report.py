"""The report of a run: whole and self-contained, with nothing of the data able to act in it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from data_pipeline.errors import CheckpointError, UsageError
from pretrain import report
from pretrain.curves import Picture, draw_figures
from pretrain.figures import Figure
from pretrain.report import one, story
from pretrain.report.learned import probe_tables
from pretrain.report.write import figures_of_run
from tests.report_runs import probe, provenance, write_lines, write_object, write_run, write_troubles

EVIL = '<script>alert(\'x\')</script>"><img src=x onerror="alert(1)">.mp4'
SECRET = "http://ann:hunter2@host:5000"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run's folder whose pictures need neither a data set nor a checkpoint, and are few."""

    def draw(at: Path, _: object) -> tuple[list[Picture], list[str]]:
        (at / "pictures").mkdir(exist_ok=True)
        Image.new("RGB", (40, 40), "red").save(at / "pictures" / "masks-1.png")
        return [Picture(at / "pictures" / "masks-1.png", "Masks", f"of {EVIL}")], [f"nothing of {EVIL}"]

    def draw_one(figures: Sequence[Figure], folder: Path) -> list[Picture]:
        return draw_figures(figures[:1], folder)

    monkeypatch.setattr(story, "draw_pictures", draw)
    monkeypatch.setattr(story, "draw_figures", draw_one)
    return write_run(tmp_path / "a run")


class Page(HTMLParser):
    """Tags and addresses of a page, and whether every tag that is opened is closed."""

    VOID = frozenset({"meta", "img", "br", "path", "use", "rect"})

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.headings: list[int] = []
        self.scripts: list[str] = []
        self.without_alt = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        given = dict(attrs)
        if (tag == "img" and not given.get("alt")) or (tag == "svg" and not given.get("aria-label")):
            self.without_alt += 1
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

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)


def parsed(path: Path) -> tuple[str, Page]:
    text = path.read_text(encoding="utf-8")
    found = Page()
    found.feed(text)
    assert found.open == []
    return text, found


def told(run: Path) -> str:
    """The page's HTML, without drawing anything."""
    return one.page(story.tell(run, with_pictures=False))


def test_a_report_is_one_file_that_fetches_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(story, "draw_figures", draw_figures)
    write_troubles(run)
    path = report.write_report(run)
    text, found = parsed(path)
    assert path == run / "report.html"
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in found.addresses)
    targets = {address[1:] for address in found.addresses if address.startswith("#")}
    assert targets <= set(found.ids)
    assert len(found.ids) == len(set(found.ids))
    assert len(found.scripts) == 1
    assert "link" not in found.tags
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert found.tags.count("svg") > 12
    assert found.without_alt == 0
    assert all(after - before <= 1 for before, after in zip(found.headings, found.headings[1:], strict=False))
    assert found.headings.count(1) == 1
    assert path.stat().st_size < 1_000_000


def test_its_only_script_is_the_one_that_its_policy_names(run: Path) -> None:
    import base64
    import hashlib

    text, found = parsed(report.write_report(run))
    (script,) = found.scripts
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy[1]
    assert "default-src 'none'" in policy[1]
    assert "unsafe-inline" not in policy[1].split("script-src")[1].split(";")[0]


def test_nothing_that_comes_from_data_can_act(run: Path) -> None:
    evil = {"encoder": EVIL, "scores": {EVIL: 0.5}}
    write_object(
        run / "probe.json", probe(200) | {"data": EVIL, "how": EVIL, "units": {EVIL: EVIL}, "rows": [evil]}
    )
    facts = {"name": EVIL, "num_clips": 3, "fingerprint": EVIL, "weight": 1.0}
    write_object(run / "provenance.json", {"host": EVIL, "versions": {EVIL: EVIL}, "datasets": [facts]})
    write_lines(run / "health.jsonl", [{"step": 1, "verdict": EVIL, "reason": EVIL, "changes": {EVIL: EVIL}}])
    write_lines(run / "restarts.jsonl", [{"began": EVIL, "sentence": EVIL, "next": EVIL, "signal": EVIL}])
    write_lines(run / "probes.jsonl", [{"step": s, "scores": {EVIL: 0.1 * s}} for s in (1, 2)])
    letters = run.parent / "data" / "dead_letters.jsonl"
    letters.write_text(json.dumps({"uri": EVIL, "reason": f"{EVIL} {SECRET}"}) + "\nhalf a li")
    text, found = parsed(report.write_report(run))
    assert len(found.scripts) == 1
    assert "<script>alert" not in text
    assert "onerror=&quot;" in text
    assert found.tags.count("img") == 1
    assert "hunter2" not in text
    assert "http://***@host:5000" in text


def test_no_file_of_a_run_shows_its_credentials(run: Path) -> None:
    plain = json.loads((run / "config.yaml").read_text())
    plain["tracker"]["uri"] = SECRET
    (run / "config.yaml").write_text(json.dumps(plain))
    write_object(run / "mlflow_run.json", {"run_id": "r", "experiment_id": "1", "address": SECRET})
    write_object(run / "result.json", {"stopped": f"a store at {SECRET} is away"})
    write_lines(run / "skipped.jsonl", [{"step": 1, "id": "a", "reason": f"{SECRET} said no"}])
    text = told(run)
    assert "hunter2" not in text
    assert 'href="http://***@host:5000/#/experiments/1/runs/r"' in text


def test_a_run_that_has_just_begun_says_what_is_missing(run: Path) -> None:
    for name in ("metrics.jsonl", "probe.json", "probes.jsonl", "provenance.json", "result.json"):
        (run / name).unlink()
    text, _ = parsed(report.write_report(run))
    for said in (
        "0 of 200 steps so far",
        "foreframe probe",
        "no probe yet",
        "unfinished",
        "no curves",
        "no provenance",
    ):
        assert said in text


@pytest.mark.parametrize(("loss", "is_warned"), [(0.5, False), (1.32, True)])
def test_predictions_no_better_than_a_trivial_answer_stand_beside_the_verdict(
    tmp_path: Path, loss: float, is_warned: bool
) -> None:
    beside = {"health/loss_prediction": loss, "health/loss_mean_token": 1.0, "health/loss_copy": 1.1}
    told_of = told(write_run(tmp_path / "r", metrics=beside))
    head = told_of[told_of.index("<header>") : told_of.index("</header>")]
    assert ("no better than a trivial answer" in head) is is_warned


def test_an_unfinished_run_is_told_how_to_go_on(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a run", done=20)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"st')
    text = told(run)
    assert "20 of 200 steps so far" in text
    assert re.search(r"foreframe train &#x27;.*a run/config.yaml&#x27;", text)
    assert "no JSON object" not in text, "half a last line is what a crash leaves"


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[1]", b"\xff\xfe\x00", b'{"rows": 3, "units": [], "x": {"rows": [1]}}']
)
@pytest.mark.parametrize("name", ["probe.json", "provenance.json", "result.json", "mlflow_run.json"])
def test_a_damaged_object_is_named_and_stops_nothing(tmp_path: Path, name: str, damage: bytes) -> None:
    run = write_run(tmp_path / "r")
    (run / name).write_bytes(damage)
    text = told(run)
    assert "What was learned" in text
    assert (f"{name} cannot be read" in text) == (b"rows" not in damage)


@pytest.mark.parametrize(
    "name",
    ["metrics.jsonl", "health.jsonl", "probes.jsonl", "restarts.jsonl", "skipped.jsonl", "rolled_back.jsonl"],
)
def test_damaged_lines_are_left_out(tmp_path: Path, name: str) -> None:
    run = write_run(tmp_path / "r")
    write_troubles(run)
    before = (run / name).read_bytes()
    odd = (
        b'7\n{"step": "x"}\n{"step": 5, "loss": [1], "scores": 3, "data/wait_share": "x", "began": 1}\n\xff\n'
    )
    (run / name).write_bytes(before + odd + before + b'{"half')
    text = told(run)
    assert "How it went" in text
    if name != "metrics.jsonl":
        assert f"{name}: 2 lines are no JSON object" in text


def test_a_folder_in_place_of_a_file_is_a_sentence(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r")
    for name in ("metrics.jsonl", "probe.json", "probes.jsonl"):
        (run / name).unlink()
        (run / name).mkdir()
    text = told(run)
    for name in ("metrics.jsonl", "probe.json", "probes.jsonl"):
        assert f"{name} cannot be read" in text


def test_how_it_went_tells_restarts_rollbacks_and_what_was_skipped(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", metrics={"optim/skipped_steps": 2})
    write_troubles(run)
    attempts = (run / "restarts.jsonl").read_text().replace('"node": 0', '"node": 1')
    (run / "restarts-node-00001.jsonl").write_text(attempts)
    text = told(run)
    for said in (
        "It was started 2 times",  # on either of two machines
        "1, node 1",
        "34 steps were taken again",  # 84 were reached, 50 were saved
        "It was rolled back once; 15 logged steps",
        "2 steps were skipped",
        "2 samples could not be read",
        "the clip is cut short",
        "rolled back to step 100, with optim.lr=0.0005",
        "SIGKILL: a rank was killed<",  # not what to type next, which was right at that time
    ):
        assert said in text, said


def test_the_probe_stands_beside_the_untrained_row_with_its_gain(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r")
    rows = [
        {"encoder": "trained", "scores": {"position": 0.75, "velocity": -0.001}},
        {"encoder": "untrained", "scores": {"position": 0.62, "velocity": None}},
    ]
    write_object(
        run / "probe.json", probe(200) | {"rows": rows, "units": {"position": "R²", "velocity": "R²"}}
    )
    text = told(run)
    assert '<td data-v="0.75">0.75<small class="good">+0.13</small></td>' in text
    assert '<th scope="row">untrained</th><td data-v="0.62">0.62</td><td data-v="nan">–</td>' in text
    assert ">0.00</td>" in text  # −0.001 has no minus


def test_every_table_that_a_probe_holds_is_drawn_beside_its_own_untrained_row(tmp_path: Path) -> None:
    own, labels = probe_tables(probe(200))
    assert [row.label for row in own.rows] == ["trained", "untrained", "mean of the train clips"]
    assert labels.title == "labels"
    linear = next(row for row in labels.rows if row.label == "trained, linear")
    beside = labels.beside(linear)
    assert beside is not None
    assert (beside.label, beside.scores["top-1"]) == ("untrained, linear", 0.45)
    text = told(write_run(tmp_path / "r"))
    assert "trained, attentive" in text
    assert "best of five learning rates" in text


def test_weights_that_were_loaded_are_not_called_untrained(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", config={"init": {"weights": "runs/first"}})
    text = told(run)
    assert "what it was at the start" in text
    assert "(untrained 0." in text, "a probe's baseline is drawn from the seed"
    curves = [
        curve.name
        for figure in figures_of_run(story.tell(run, with_pictures=False))
        for curve in figure.axes[0].curves
    ]
    assert curves.count("untrained") == 3 and "at the start" in curves
    assert "untrained encoder&#x27;s" not in text
    assert "untrained encoder's" not in text


def test_files_that_git_does_not_know_are_told_with_the_commit(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r")
    write_object(run / "provenance.json", provenance() | {"untracked": ["a.py"], "num_untracked": 1})
    assert "32402d0b34732ee38c67c148f01b19d65e6c1077, 1 untracked file<" in told(run)


def test_the_best_checkpoint_is_by_probe_and_the_loss_would_have_chosen_another(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r")
    said = "The lowest loss would have chosen another one: step 200. Its checkpoint is"
    assert f"{said} not in the run&#x27;s folder." in told(run)
    (run / "checkpoints" / "step-00000150").mkdir(parents=True)
    (run / "checkpoints" / "step-00000150" / "manifest.json").touch()
    assert f"{said} kept." in told(run)


def test_a_run_called_run_has_its_folder_in_the_title(tmp_path: Path) -> None:
    run = write_run(tmp_path / "mine" / "run", name="run")
    assert "<title>mine/run: foreframe</title>" in told(run)


def test_another_file_can_be_named_and_figures_are_written_as_svg_and_pdf(run: Path, tmp_path: Path) -> None:
    write_lines(run / "metrics.jsonl", [{"step": step, "loss": 1 / step} for step in (1, 2, 3)])
    (run / "probes.jsonl").unlink()
    path = report.write_report(run, out=tmp_path / "elsewhere" / "page.html", figures=tmp_path / "figures")
    assert path.exists()
    assert not (run / "report.html").exists()
    assert sorted(f.name for f in (tmp_path / "figures").iterdir()) == ["loss.pdf", "loss.svg"]
    assert (tmp_path / "figures" / "loss.pdf").read_bytes().startswith(b"%PDF")
    svg = (tmp_path / "figures" / "loss.svg").read_text()
    assert ">step<" in svg
    assert 'width="252pt"' in svg, "a column of a paper, 3.5 inches"


def test_what_cannot_be_written_is_a_sentence(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="choose another --out"):
        report.write_report(run, out=tmp_path / "file" / "page.html")
    with pytest.raises(UsageError, match="choose another --figures"):
        report.write_report(run, figures=tmp_path / "file")


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        report.write_report(tmp_path / "nothing")
    with pytest.raises(CheckpointError):
        report.write_report(tmp_path)
    (tmp_path / "config.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match="no config of this release"):
        report.write_report(tmp_path)


@pytest.mark.parametrize("count", [10_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_many_thousand_lines_are_a_small_page(run: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(story, "draw_figures", lambda figures, at: draw_figures(figures[:3], at))
    line = {
        "loss": 0.5,
        "loss/mask0": 0.4,
        "loss/mask1": 0.6,
        "health/target_std": 1.0,
        "perf/step_ms": 100.0,
    }
    with (run / "metrics.jsonl").open("w") as file:
        for step in range(1, count + 1):
            file.write(json.dumps({"step": step, **line, "loss": 0.5 + 0.1 * (step % 7)}) + "\n")
    path = report.write_report(run)
    text = path.read_text()
    assert path.stat().st_size < 1_000_000
    assert f"Drawn from {count:,} logged steps" in text


def test_a_run_that_the_sentinel_stopped_says_why(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", done=120, collapses=True)
    stop = {"step": 120, "verdict": "collapsing", "reason": "spread is 3 %", "response": "stopped"}
    write_lines(run / "health.jsonl", [stop])
    assert "120 of 200 steps are logged; it was stopped, as it was collapsing: spread is 3 %." in told(run)
