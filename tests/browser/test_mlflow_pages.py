"""MLflow's pages of real runs, as `foreframe ui` serves them: curves, pictures, a comparison, a model."""

from __future__ import annotations

import itertools
import json
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

pytest.importorskip("selenium")
pytest.importorskip("mlflow")
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from launch.train import run_train
from launch.weights import register_weights, run_export
from pretrain.build import build_engine
from pretrain.config import RunConfig, plan
from pretrain.step_pictures import StepPictures
from pretrain.strategy.base import World
from pretrain.tracking.base import Finding, Several, add_results
from pretrain.tracking.pictures import step_pictures
from tests.browser.conftest import Browser
from tests.servers.process import die_with_parent
from tests.small_dataset import tiny_config

pytestmark = pytest.mark.browser
ROOT = Path(__file__).parents[2]
KIND = "workflowType=machine_learning"
KNOWN = (
    "users/current",
    "ResizeObserver loop",
    "path=MLmodel",
)  # what MLflow's pages complain of by themselves
WAIT_S = 90  # a loaded machine is slow to draw
CURVES = ".js-plotly-plot .scatterlayer .trace path.js-line"
# MLflow opens an assistant over a third of the page at the first visit.
QUIET = "; ".join(
    f"if (location.protocol == 'http:') localStorage.setItem('mlflow.{key}', '{value}')"
    for key, value in (
        ("assistant.fab.autoOpenedOnFirstLoad_v1", "true"),
        ("assistant.panelOpen_v1", "false"),
        ("telemetry.info.alert.dismissed_v1", "true"),
    )
)


@dataclass(frozen=True)
class Pages:
    """A server of two runs in one group. address: its root; ids: of the runs; experiment: theirs."""

    address: str
    ids: tuple[str, str]
    experiment: str

    def of_run(self, page: str = "", number: int = 0) -> str:
        return f"{self.address}/#/experiments/{self.experiment}/runs/{self.ids[number]}{page}?{KIND}"


def draw(config: RunConfig, run: Path) -> None:
    """Pictures of two steps, by an encoder that has not learned yet; how they are taken has its own tests."""
    laid_out = plan(config, 1)
    engine = build_engine(laid_out, World(0, 1, torch.device("cpu")))
    pictures = StepPictures(run, laid_out, engine, Several(), pytest.fail)
    for step in (10, 20):
        pictures.take(step)
    pictures.close()
    for step, path in step_pictures(run):
        add_results(config.tracker, run, step=step, scores={}, pictures=[path], say=pytest.fail)


@pytest.fixture(scope="module")
def pages(
    small_dataset: Path, empty_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pages]:
    """Two short trainings in one store, the first with pictures, a probing and a registered encoder."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "mlflow.db").write_bytes(empty_store.read_bytes())
    tracker = {"kind": "mlflow", "uri": f"sqlite:///{folder / 'mlflow.db'}", "group": "learning rates"}
    runs = []
    for name, lr in (("lr-1e-3", 1e-3), ("lr-4e-3", 4e-3)):
        config = tiny_config(
            small_dataset,
            folder / "runs",
            name=name,
            optim={"lr": lr},
            train={"steps": 20, "log_every": 1, "checkpoint_every": 20},
            tracker=tracker,
        )
        runs.append(run_train(config, quiet=True).run)
        if len(runs) == 1:
            draw(config, runs[0])
            finding = Finding("probe at step 20", {"kind": "states"}, {"trained/position": 0.5})
            scores = {"probe/trained/position": 0.5, "probe/untrained/position": 0.25}
            add_results(config.tracker, runs[0], step=20, scores=scores, finding=finding, say=pytest.fail)
            weights = run_export(
                runs[0],
                folder / "out",
                "foreframe",
                step=None,
                of=None,
                allow_partial=False,
                force=False,
                register="tiny-encoder",
            )
            register_weights(runs[0], folder / "out", "tiny-encoder", weights)
    records = [json.loads((run / "mlflow_run.json").read_text()) for run in runs]
    with Served(runs[0]) as address:
        first, second = (record["run_id"] for record in records)
        yield Pages(address, (first, second), records[0]["experiment_id"])


class Served:
    """`foreframe ui` of a run, until the end of the block; the address that it names."""

    def __init__(self, run: Path) -> None:
        self._run = run

    def __enter__(self) -> str:
        port = 5200 + os.getpid() % 700
        self._process = subprocess.Popen(
            [sys.executable, "-m", "launch", "ui", str(self._run), "--port", str(port)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "COLUMNS": "500"},
            preexec_fn=die_with_parent,
        )
        assert self._process.stdout is not None
        printed, deadline = "", time.monotonic() + 120
        while time.monotonic() < deadline and self._process.poll() is None:
            if select.select([self._process.stdout], [], [], 1)[0]:
                printed += self._process.stdout.readline()
            if found := re.search(r"(http://127\.0\.0\.1:\d+)/#/experiments", printed):
                return found[1]
        self.__exit__()
        raise AssertionError(f"foreframe ui did not start:\n{printed}")

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(30)


def show(browser: Browser, address: str, *words: str) -> None:
    """Open a page, and wait until all of the words are on it."""
    browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": QUIET})
    browser.get("about:blank")
    browser.get(address)
    wait(browser, lambda: all(word in seen(browser) for word in words), f"{words} on {address}")


def seen(browser: Browser) -> str:
    return browser.find_element(By.TAG_NAME, "body").text


def wait(browser: Browser, until: object, what: str) -> None:
    def tried(_: object) -> bool:
        try:
            return bool(until())  # type: ignore[operator]
        except Exception:  # an element that React replaced meanwhile
            return False

    WebDriverWait(browser, WAIT_S).until(tried, f"waited for {what}; the page says: {seen(browser)[:1500]}")


def scroll_to_end(browser: Browser) -> None:
    """Of whatever part of the page has most to scroll."""
    browser.execute_script(
        "const boxes = [...document.querySelectorAll('*')].filter(e => e.scrollHeight > e.clientHeight + 50"
        " && getComputedStyle(e).overflowY != 'visible');"
        "boxes.sort((a, b) => b.scrollHeight - a.scrollHeight); if (boxes[0]) boxes[0].scrollTop = 1e6"
    )


def sections(browser: Browser) -> list[str]:
    """The names of the sections of charts, which stand alone on a line before their number of charts."""
    lines = seen(browser).splitlines()
    return [name for name, count in itertools.pairwise(lines) if re.fullmatch(r"\(\d+\)", count)]


def search(browser: Browser, words: str) -> None:
    """Leave those charts on the page whose names have the words; others are drawn only when scrolled to."""
    wait(browser, lambda: sections(browser), "charts")
    browser.find_element(By.CSS_SELECTOR, "input[placeholder*='metric charts']").send_keys(words)
    wait(browser, lambda: "data" not in sections(browser), f"charts of {words}")


def curves(browser: Browser) -> list[str]:
    """The paths of drawn lines; those with more than a point or two are long."""
    found = browser.find_elements(By.CSS_SELECTOR, CURVES)
    return [path for each in found if len(path := each.get_attribute("d") or "") > 100]


def pictures_shown(browser: Browser) -> list[WebElement]:
    """Pictures of steps that were loaded: not broken, not of no size."""
    found = browser.find_elements(By.CSS_SELECTOR, "img[src*='get-artifact']")
    return [each for each in found if browser.execute_script("return arguments[0].naturalWidth", each) > 300]


def troubles(browser: Browser) -> list[str]:
    return [said for said in browser.errors() if not any(words in said for words in KNOWN)]


def test_a_run_shows_its_curves_by_group(browser: Browser, pages: Pages) -> None:
    show(browser, pages.of_run("/model-metrics"), "lr-1e-3")
    wait(browser, lambda: len(curves(browser)) >= 3, "curves")
    browser.keep("mlflow-metrics")
    assert {"data", "health", "loss", "optim", "perf"} <= set(sections(browser)), "a section a group"
    search(browser, "loss/")
    wait(browser, lambda: "loss/total" in seen(browser) and len(curves(browser)) >= 2, "curves of losses")
    browser.keep("mlflow-losses")
    assert not troubles(browser)


@pytest.mark.slow
def test_pictures_can_be_followed_over_steps(browser: Browser, pages: Pages) -> None:
    show(browser, pages.of_run("/model-metrics"), "lr-1e-3")
    search(browser, "pictures/")
    wait(browser, lambda: "pictures" in sections(browser), "a section of pictures")
    sources = []
    for step in ("10", "20"):
        for box in browser.find_elements(By.CSS_SELECTOR, "input[type='number'], input[role='spinbutton']"):
            box.send_keys(Keys.CONTROL, "a")
            box.send_keys(step, Keys.ENTER)
        wait(browser, lambda step=step: f"step%2B{step}" in sources_of(browser), f"pictures of step {step}")
        sources.append(sources_of(browser))
        browser.keep(f"mlflow-pictures-{step}")
    assert sources[0] != sources[1]
    full = browser.find_elements(By.CSS_SELECTOR, "button[data-component-id*='full']")
    full = full or [
        b
        for b in browser.find_elements(By.TAG_NAME, "button")
        if "full" in b.get_attribute("outerHTML").lower()
    ]
    full[0].click()
    wait(browser, lambda: "clip-" in seen(browser), "one picture alone")
    time.sleep(1)  # it is drawn larger
    browser.keep("mlflow-picture-whole")
    assert not troubles(browser)


def sources_of(browser: Browser) -> str:
    return " ".join(str(each.get_attribute("src")) for each in pictures_shown(browser))


@pytest.mark.slow
def test_the_overview_says_what_the_run_is(browser: Browser, pages: Pages) -> None:
    show(browser, pages.of_run(), "About this run", "A video encoder of")
    text = seen(browser)
    for words in (
        "small (",
        "Training",
        "commit",
        "world_size",
        "foreframe train",
        "tiny-encoder",
        "attempt",
    ):
        assert words in text, words
    browser.keep("mlflow-overview")
    scroll_to_end(browser)
    wait(browser, lambda: "optim.lr" in seen(browser), "parameters")
    browser.keep("mlflow-overview-end")
    assert not troubles(browser)


@pytest.mark.slow
def test_the_list_has_the_group_with_its_runs_and_probings_below(browser: Browser, pages: Pages) -> None:
    show(browser, f"{pages.address}/#/experiments/{pages.experiment}/runs?{KIND}", "learning rates")
    expanders = "button[data-component-id*='runnamecellrenderer']"
    browser.find_element(By.CSS_SELECTOR, expanders).click()
    wait(browser, lambda: "lr-4e-3" in seen(browser), "the runs of the group")
    browser.find_elements(By.CSS_SELECTOR, expanders)[-1].click()
    wait(browser, lambda: "probe at step 20" in seen(browser), "the probing below its run")
    browser.keep("mlflow-runs")
    assert "lr-1e-3" in seen(browser)
    assert not troubles(browser)


@pytest.mark.slow
def test_two_runs_are_compared(browser: Browser, pages: Pages) -> None:
    ids = json.dumps(list(pages.ids))
    address = f"{pages.address}/#/compare-runs?runs={ids}&experiments={json.dumps([pages.experiment])}&{KIND}"
    show(browser, address, "lr-1e-3", "lr-4e-3", "optim.lr")
    browser.keep("mlflow-compare")
    text = seen(browser)
    assert "0.001" in text and "0.004" in text
    scroll_to_end(browser)
    time.sleep(1)
    browser.keep("mlflow-compare-end")
    assert not troubles(browser)


@pytest.mark.slow
def test_artifacts_show_a_picture_and_the_config(browser: Browser, pages: Pages) -> None:
    show(browser, pages.of_run("/artifacts/pictures/clip-features.png"), "config.yaml", "environment.txt")
    wait(
        browser,
        lambda: bool(browser.find_elements(By.CSS_SELECTOR, "img[src*='blob'], .image-outer-container")),
        "a picture",
    )
    time.sleep(1)
    browser.keep("mlflow-artifacts")
    assert not troubles(browser)


@pytest.mark.slow
def test_the_registered_model_has_its_card(browser: Browser, pages: Pages) -> None:
    address = f"{pages.address}/#/models/tiny-encoder/versions/1?{KIND}"
    show(browser, address, "Version 1", "a video encoder of 2 blocks", "data_fingerprint")
    browser.keep("mlflow-model")
    assert "lr-1e-3" in seen(browser), "the run that it is from"
    assert not troubles(browser)
