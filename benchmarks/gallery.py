"""docs/gallery.md and its pictures, from real runs on the demo's rendered shards.

python -m benchmarks.gallery                   trains into runs/gallery on runs/demo/data (after `make demo`)
python -m benchmarks.gallery --data D --out O  on other shards with states, into another folder

Four runs of the demo's recipe in one process each: three seeds, and one whose targets are pulled to the
predictions, so that its features collapse. A run that is there already is not trained again. Screenshots need
chromium, chromedriver and the dev extra.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from pretrain.curves import INK, draw
from pretrain.recent import recent_loss
from pretrain.report import write_comparison, write_report
from pretrain.report.compare import overlaid, tell_all
from pretrain.report.story import Story
from pretrain.report.verdicts import spread_share

ROOT = Path(__file__).parents[1]
PAGE, PICTURES = ROOT / "docs" / "gallery.md", ROOT / "docs" / "gallery"
RECIPE = "configs/train/tiny-cpu.yaml"
HEALTHY = tuple(f"healthy-seed{seed}" for seed in range(3))
COLLAPSE = "collapse"
PLANTED = ("target.kind=online", "target.stop_gradient=false", "health.on_collapse=warn")
SHOTS = {  # name: width, height, whether by night
    "report-light": (1180, 1500, False),
    "report-dark": (1180, 1500, True),
    "report-phone": (390, 1500, False),
}


def settings(data: Path, out: Path, steps: int) -> list[str]:
    """What all runs share, beside the recipe: one process, and often looked at."""
    return [
        f"data.shards={data}",
        f"out={out}",
        "strategy.kind=single",
        "train.micro_batch=8",
        "train.threads=1",
        "train.time_limit_s=null",
        "train.log_every=5",
        f"train.steps={steps}",
        f"train.checkpoint_every={steps}",
        "health.every=10",
        "tracker.kind=jsonl",
    ]


def train_all(data: Path, out: Path, steps: int) -> list[Path]:
    """The runs' folders, trained and probed where they were not yet."""
    own = {name: [f"seed={seed}"] for seed, name in enumerate(HEALTHY)} | {COLLAPSE: list(PLANTED)}
    for name, changes in own.items():
        run = out / name
        if not (run / "result.json").exists():
            command("train", RECIPE, f"name={name}", *settings(data, out, steps), *changes, "--quiet")
        if not (run / "probe.json").exists():
            command("probe", str(run))
    return [out / name for name in own]


def command(*arguments: str) -> None:
    print("foreframe", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", "launch", *arguments], check=True, cwd=ROOT)


def make_small(picture: Image.Image, path: Path) -> None:
    """Write a PNG of 256 colours: a screenshot needs no more."""
    picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def screenshots(report: Path, comparison: Path) -> None:
    """Pages as a browser shows them, from their top."""
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(flag)
    browser = Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        every = [(report, name, shot) for name, shot in SHOTS.items()]
        every.append((comparison, "compare", (1180, 1500, False)))
        for page, name, (width, height, is_night) in every:
            size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
            scheme = [{"name": "prefers-color-scheme", "value": "dark" if is_night else "light"}]
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
            browser.get(page.absolute().as_uri())
            taken = base64.b64decode(browser.get_screenshot_as_base64())
            make_small(Image.open(io.BytesIO(taken)), PICTURES / f"{name}.png")
    finally:
        browser.quit()


def on_white(path: Path) -> None:
    """A white ground under an SVG of dark ink: pages that show it may be dark."""
    text = path.read_text(encoding="utf-8")
    head, tag, rest = text.partition("<svg")
    attributes, close, inside = rest.partition(">")
    path.write_text(f'{head}{tag}{attributes}{close}<rect width="100%" height="100%" fill="#fff"/>{inside}')


def draw_all(runs: list[Path]) -> list[Story]:
    """Everything in docs/gallery; returns the runs' stories, the collapsed one's last."""
    shutil.rmtree(PICTURES, ignore_errors=True)
    PICTURES.mkdir(parents=True)
    report = write_report(runs[0])
    comparison = write_comparison(runs)
    screenshots(report, comparison)
    stories = tell_all(runs)
    for figure in overlaid(stories):
        if figure.name in ("loss", "spread", "rankme"):
            path = PICTURES / f"{figure.name}.svg"
            draw(figure, path, INK)
            on_white(path)
    for name in ("masks-1", "masks-2", "features"):
        drawn = Image.open(runs[0] / "pictures" / f"{name}.png").convert("RGBA")
        ground = Image.new("RGBA", drawn.size, "#ffffff")
        make_small(Image.alpha_composite(ground, drawn), PICTURES / f"{name}.png")
    return stories


def words(stories: list[Story], steps: int) -> str:
    """docs/gallery.md: what each picture shows, with the figures of these runs."""
    healthy = stories[0]
    facts: dict[str, Any] = json.loads((healthy.run / "provenance.json").read_text())

    light, dark, phone = (f"gallery/{name}.png" for name in SHOTS)

    def figures(story: Story) -> str:
        loss, share = recent_loss(story.metrics), spread_share(story.metrics)
        return f"loss {loss:.3f}, {share:.0%} of the untrained spread" if loss and share is not None else "?"

    return f"""# Gallery

What runs look like. Drawn by `make gallery` from four real runs of {steps} steps of `{RECIPE}`
on the demo's rendered clips, each in one process on {facts["device"]}; commit
{str(facts["commit"])[:10]}. How to read it all: [train.md](train.md#the-report).

## The report
`foreframe report RUN` writes one page that needs no network.

| by day | by night | on a phone |
|---|---|---|
| ![a report, light]({light}) | ![a report, dark]({dark}) | ![a report at 390 pixels]({phone}) |

## Several runs side by side
`foreframe report RUN RUN…`: what they came to, what differs, and their curves together. Three seeds of one
config are one line, in a band from the lowest to the highest.

![top of a page that compares four runs](gallery/compare.png)

## A collapse that the loss does not show
In one of the runs the targets are pulled to the predictions: `{" ".join(PLANTED[:2])}`.

| run | at its end | verdict |
|---|---|---|
{chr(10).join(f"| {s.config.name} | {figures(s)} | {s.health.word} |" for s in stories)}

![loss of the healthy runs and of the collapsed one, by step](gallery/loss.svg)

![spread of features across clips of the same runs](gallery/spread.svg)

![RankMe of the same runs](gallery/rankme.svg)

## What the encoder sees, and what it makes of it
{healthy.learned}

![clips with the tokens that masks of the first kind hide](gallery/masks-1.png)

![clips with the tokens that masks of the second kind hide](gallery/masks-2.png)

![a clip, and its features as colours: trained, and untrained](gallery/features.png)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "runs" / "demo" / "data")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gallery")
    parser.add_argument("--steps", type=int, default=200)
    given = parser.parse_args()
    if not (given.data / "dataset.json").exists():
        parser.error(f"{given.data} holds no finished data set: run `make demo`, or name one with --data")
    stories = draw_all(train_all(given.data.absolute(), given.out.absolute(), given.steps))
    PAGE.write_text(words(stories, given.steps), encoding="utf-8")
    print(f"wrote {PAGE} and {PICTURES}")


if __name__ == "__main__":
    main()
