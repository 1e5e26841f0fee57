"""Several runs side by side: what differs, seeds of one config together, curves of any length."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.errors import CheckpointError
from pretrain import report
from pretrain.report import several
from pretrain.report.compare import (
    _together,
    facts_that_differ,
    final_figures,
    is_same_data,
    names_of,
    overlaid,
    series_of,
    settings_that_differ,
    tell_all,
)
from pretrain.report.spent import median
from tests.report_runs import provenance, write_lines, write_object, write_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One run, one with another rate that collapses and ends early, and three seeds of one config."""
    folder = tmp_path_factory.mktemp("runs")
    base = write_run(folder / "base", name="base")
    fast = write_run(folder / "fast", name="fast", config={"optim": {"lr": 3e-3}}, collapses=True, done=120)
    wide = {"model": {"encoder": {"preset": "vit_base"}}}
    seeds = [write_run(folder / f"wide-{s}", name=f"wide-seed{s}", seed=s, config=wide) for s in range(3)]
    return [base, fast, *seeds]


def test_what_differs_is_named_and_nothing_else(runs: list[Path], tmp_path: Path) -> None:
    stories = tell_all(runs[:2])
    assert settings_that_differ(stories) == {"optim.lr": ["0.001", "0.003"]}
    assert facts_that_differ(stories) == {}
    assert is_same_data(stories) is True
    online = write_run(
        runs[0].parent / "online", config={"target": {"kind": "online", "stop_gradient": False}}
    )
    found = settings_that_differ(tell_all([runs[0], online]))
    assert found == {"target.kind": ["ema", "online"], "target.stop_gradient": ["true", "false"]}
    other = write_run(tmp_path / "other", name="base", data="0000")
    stories = tell_all([runs[0], other])
    (name, values), *_ = facts_that_differ(stories).items()
    assert name == "data set"
    assert [value.rpartition(" ")[2] for value in values] == ["52f4fa5ed730a587", "0000"]
    assert is_same_data(stories) is False
    same = write_run(tmp_path / "same", name="base")
    found_there = provenance()
    found_there["datasets"] += [
        {"name": "held-out", "fingerprint": "beef", "num_clips": 9, "context": "probe"}
    ]
    write_object(same / "provenance.json", found_there)
    stories = tell_all([runs[0], same])
    assert is_same_data(stories) is True, "probes of other clips teach nothing"
    assert list(facts_that_differ(stories)) == ["data set 2, for probes", "data set 2, for probes, clips"]
    (other / "provenance.json").unlink()
    assert is_same_data(tell_all([runs[0], other])) is None


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    made = [write_run(tmp_path / which / "run", name="run") for which in ("a", "b")]
    assert names_of(tell_all(made)) == ["a/run", "b/run"]
    assert len(tell_all([made[0], made[0] / ".." / "run"])) == 1, "the same folder twice is one run"


def test_three_seeds_of_one_config_are_one_series_and_two_are_not(runs: list[Path]) -> None:
    found = series_of(tell_all(runs))
    assert [(each.name, len(each.stories)) for each in found] == [
        ("base", 1),
        ("fast", 1),
        ("wide × 3 seeds", 3),
    ]
    assert [each.colour for each in found] == [0, 1, 2]
    assert len(series_of(tell_all(runs[:4]))) == 4


def test_runs_that_differ_in_more_than_the_seed_are_not_taken_together(
    runs: list[Path], tmp_path: Path
) -> None:
    again = [runs[2], runs[3], write_run(tmp_path / "data", name="w", seed=2, data="0000")]
    assert len(series_of(tell_all(again))) == 3


def test_a_band_is_the_mean_and_range_up_to_the_end_of_the_shortest() -> None:
    short = (np.array([0.0, 10, 20]), np.array([1.0, 2, 3]))
    long = (np.array([0.0, 5, 10, 40]), np.array([3.0, 4, 5, 9]))
    curve = _together("x", 0, [short, long], smooth=False, num_spans=40)
    assert curve.steps.tolist() == [0, 5, 10, 20]
    for at, mean, low, high in zip(curve.steps, curve.values, curve.low, curve.high, strict=True):
        each = [float(np.interp(at, *run)) for run in (short, long)]
        assert (mean, low, high) == pytest.approx((sum(each) / 2, min(each), max(each)))


def test_curves_of_unequal_length_end_where_their_runs_do(runs: list[Path]) -> None:
    loss = overlaid(tell_all(runs))[0]
    assert [curve.steps[-1] for curve in loss.axes[0].curves] == [200, 120, 200]
    assert [curve.name for curve in loss.axes[0].curves] == ["base", "fast", "wide × 3 seeds"]
    assert loss.axes[0].curves[2].low is not None
    names = [figure.name for figure in overlaid(tell_all(runs))]
    assert {"loss", "spread", "rankme", "probe-1", "probe-3"} <= set(names)


def test_final_figures_are_those_of_the_end(runs: list[Path]) -> None:
    (story,) = tell_all(runs[:1])
    found = {final.name: final for final in final_figures(story)}
    losses = [line["loss"] for line in story.metrics][-10:]
    assert found["loss"].value == pytest.approx(sum(losses) / 10)
    assert found["spread"].shown == "80%"
    assert found["position"].value == story.records.probe["rows"][0]["scores"]["position"]  # type: ignore[index]
    assert found["clips/s"].value == median([line["perf/clips_per_s"] for line in story.metrics])
    assert found["trained"].value == pytest.approx(200 * 0.11 / 60)


def test_a_run_without_an_offline_probe_is_compared_by_its_last_online_one(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r")
    (run / "probe.json").unlink()
    (story,) = tell_all([run])
    found = {(final.name, final.unit): final.value for final in final_figures(story)}
    assert found["position", "online"] == story.probings[-1].scores["position"]


def test_the_page_has_a_row_a_run_and_mean_and_range_of_the_seeds(runs: list[Path], tmp_path: Path) -> None:
    stories = tell_all(runs)
    text = several.page(stories, [])
    final = text[text.index("Final figures</caption>") :].partition("</table>")[0]
    assert re.findall(r'<th scope="row"[^>]*>([^<]*)</th>', final) == [
        "base", "fast", "wide-seed0", "wide-seed1", "wide-seed2",
    ]  # fmt: skip
    seeds = text[text.index("mean, and range below it</caption>") :].partition("</table>")[0]
    losses = [
        f.value for s in stories[2:] for f in final_figures(s) if f.name == "loss" and f.value is not None
    ]
    assert f">{sum(losses) / 3:.3f}<small" in seeds
    assert f"{min(losses):.3f} – {max(losses):.3f}" in seeds
    assert "They differ in <code>seed</code>" in text
    assert "What to try next" in text


def test_a_damaged_run_among_others_is_told_and_stops_nothing(tmp_path: Path) -> None:
    good, bad = write_run(tmp_path / "good", name="good"), write_run(tmp_path / "bad", name="bad")
    for name in ("metrics.jsonl", "provenance.json", "probes.jsonl"):
        (bad / name).unlink()
    (bad / "probe.json").write_text("{")
    text = several.page(tell_all([good, bad]), overlaid(tell_all([good, bad])))
    assert "bad: no curves: no step has been logged yet" in text
    assert "probe.json cannot be read" in text
    (bad / "config.yaml").write_text("name: [")
    with pytest.raises(CheckpointError, match=r"bad/config\.yaml is no config of this release"):
        tell_all([good, bad])


def test_a_comparison_lies_beside_the_runs_and_changes_nothing_in_them(runs: list[Path]) -> None:
    before = {path: path.stat().st_mtime_ns for run in runs for path in sorted(run.rglob("*"))}
    path = report.write_comparison(runs[:2])
    assert path == runs[0].parent / "compare.html"
    assert {path: path.stat().st_mtime_ns for run in runs for path in sorted(run.rglob("*"))} == before
    assert path.read_text().count("<svg") > 8


def test_many_long_runs_are_a_small_page(tmp_path: Path) -> None:
    lines = [
        {"step": s, "loss": 1 / s, "optim/grad_norm": 1 + s % 5, "optim/lr": 1e-3} for s in range(1, 1501)
    ]
    made = []
    for number in range(14):
        run = write_run(
            tmp_path / f"run-{number}", name=f"run-{number}", done=2, probes=False, seed=number % 2
        )
        write_lines(run / "metrics.jsonl", lines)
        made.append(run)
    path = report.write_comparison(made, out=tmp_path / "all.html")
    assert path.stat().st_size < 2_000_000
    text = path.read_text()
    assert "Drawn from 1,500 logged steps" in text
    assert text.count("class=again") == 8, "after six colours, lines are broken and the key says so"
    assert json.loads((made[0] / "config.yaml").read_text())["name"] == "run-0"


def test_runs_that_were_given_names_are_called_so_and_do_not_differ_by_them(tmp_path: Path) -> None:
    runs = [
        write_run(
            tmp_path / f"{n}", name=f"00{n}", seed=n, config={"tracker": {"run_name": f"latent, seed {n}"}}
        )
        for n in range(3)
    ]
    stories = tell_all(runs)
    assert names_of(stories) == [f"latent, seed {n}" for n in range(3)]
    assert list(settings_that_differ(stories)) == ["seed"]
    assert [each.name for each in series_of(stories)] == ["latent × 3 seeds"]
