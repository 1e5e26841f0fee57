"""The shipped recipes: each validates, fits the GPUs it names, has the published numbers, and says whence."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from launch.config import flatten, read_config, shipped_config
from launch.outline import mean_kept_and_hidden, num_parameters
from launch.yaml_file import read_document
from pretrain.config import RunConfig, plan
from pretrain.data.augment import draw_view
from pretrain.schedule import knobs_at

FOLDER = shipped_config("train/tiny-cpu.yaml").parent
EVERY = sorted(path.stem for path in FOLDER.glob("*.yaml"))
SOURCE = re.compile(r"#.*\b(yaml|paper|code|ours)\b")
UNSOURCED = {"name", "out", "objective.kind"}


class Published(NamedTuple):
    """batch: clips a step. lr: at the first step, at its height, at the last step."""

    frames: int
    size: int
    batch: int
    steps: int
    ranks: int
    lr: tuple[float, float, float]


UP = 4.25e-4 / 12_000  # a step of the warm-up of V-JEPA and V-JEPA 2, from 1e-4 to 5.25e-4 or 2e-4 to 6.25e-4
UP21 = 5e-4 / 12_000
VJEPA = Published(16, 224, 3072, 90_000, 128, (2e-4 + UP, 6.25e-4, 7.504e-5))
VJEPA2 = Published(16, 256, 3072, 240_000, 128, (1e-4 + UP, 5.25e-4, 5.25e-4))
COOLDOWN = Published(64, 256, 3072, 12_000, 256, (5.25e-4, 5.25e-4, 1.058e-4))
VJEPA21 = Published(16, 256, 6144, 135_000, 128, (1e-4 + UP21, 6e-4, 6e-4))
COOLDOWN21 = Published(64, 384, 6144, 12_000, 256, (6e-4, 6e-4, 1.208e-4))
RECIPES = {
    "vjepa-vitl16": VJEPA,
    "vjepa-vith16": VJEPA,
    "vjepa2-vitl16": VJEPA2,
    "vjepa2-vith16": VJEPA2,
    "vjepa2-vitg16": VJEPA2,
    "vjepa2-vitl16-cooldown": COOLDOWN,
    "vjepa2-vith16-cooldown": COOLDOWN,
    "vjepa2-vitg16-cooldown": COOLDOWN._replace(ranks=512),
    "vjepa2-vitg16-cooldown-384": COOLDOWN._replace(ranks=512, size=384),
    "vjepa21-vitl16": VJEPA21,
    "vjepa21-vitg16": VJEPA21,
    "vjepa21-vitl16-cooldown": COOLDOWN21,
    "vjepa21-vitg16-cooldown": COOLDOWN21,
    "vjepa2-ac-vitg16": Published(8, 256, 256, 94_500, 32, (7.5e-5 + 3.5e-4 / 4500, 4.25e-4, 0.0)),
}
# width, depth, heads, MLP width: arXiv:2506.09985, table 12
ENCODERS = {"l": (1024, 24, 16, 4096), "h": (1280, 32, 16, 5120), "g": (1408, 40, 22, 6144)}


def recipe(name: str) -> RunConfig:
    return read_config(FOLDER / f"{name}.yaml", [], RunConfig)


def size_of(name: str) -> str:
    return name.partition("-vit")[2][0]


def test_every_recipe_is_named_here() -> None:
    assert set(EVERY) == {*RECIPES, "tiny-cpu", "vits16-16f", "vits16-one-gpu"}


@pytest.mark.parametrize("name", EVERY)
def test_a_recipe_validates_under_its_own_name(name: str) -> None:
    assert recipe(name).name == name


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_the_published_numbers(name: str) -> None:
    config, published = recipe(name), RECIPES[name]
    assert config.data.frames == published.frames
    assert config.data.size == published.size
    assert config.train.global_batch == published.batch
    assert config.train.steps == published.steps
    lrs = [knobs_at(step, config).lr for step in range(0, published.steps - 1, 500)]
    last = knobs_at(published.steps - 1, config)
    assert (lrs[0], max(lrs), last.lr) == pytest.approx(published.lr, rel=1e-4, abs=1e-12)
    is_first = name.startswith("vjepa-")
    assert last.weight_decay == pytest.approx(0.36562 if is_first else 0.04, rel=1e-4)
    if "-ac-" not in name:
        assert last.momentum == pytest.approx(0.9996 if is_first else 0.99925, abs=1e-6)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_fits_the_gpus_that_its_first_line_names(name: str) -> None:
    first = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
    found = re.search(r"([\d,]+) steps on (\d+) GPUs", first)
    assert found is not None
    assert int(found[1].replace(",", "")) == RECIPES[name].steps
    assert int(found[2]) == RECIPES[name].ranks
    assert plan(recipe(name), RECIPES[name].ranks).rank_batch * RECIPES[name].ranks == RECIPES[name].batch


def block(width: int, mlp: int) -> int:
    """Weights of a transformer block: queries, keys, values; projection; MLP; two norms."""
    return 4 * width * width + 4 * width + 2 * width * mlp + mlp + width + 4 * width


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_the_published_weights(name: str) -> None:
    config, (width, depth, heads, mlp) = recipe(name), ENCODERS[size_of(name)]
    assert config.model.encoder.shape[:3] == (width, depth, heads)
    levels = 4 if name.startswith("vjepa21") else 1
    encoder = depth * block(width, mlp) + width * (3 * 2 * 16 * 16 + 1) + levels * 2 * width
    if levels > 1:  # pictures have an embedding of their own; and a vector for each of the two kinds
        encoder += width * (3 * 16 * 16 + 1) + 2 * width
    found = num_parameters(config)
    assert found["encoder"] == encoder
    # Near what the papers round to: arXiv:2506.09985, table 12 and section 3.1
    predictor = (
        305e6 if "-ac-" in name else 22e6 if levels == 1 else {"l": 50.3e6, "g": 55.4e6}[size_of(name)]
    )
    assert found["predictor"] == pytest.approx(predictor, rel=0.02)


def test_the_weights_of_the_giant_of_2_1_are_as_many_as_in_its_checkpoint() -> None:
    assert num_parameters(recipe("vjepa21-vitg16"))["encoder"] == 1_013_267_968


@pytest.mark.parametrize("name", sorted(set(RECIPES) - {"vjepa2-ac-vitg16"}))
def test_a_recipe_keeps_few_tokens(name: str) -> None:
    config, published = recipe(name), RECIPES[name]
    tokens = published.frames // 2 * (published.size // 16) ** 2
    assert math.prod(config.grid) == tokens
    many, few = mean_kept_and_hidden(config)[:2]
    for _, kept, hidden, all_tokens in (many, few):
        assert kept + hidden == pytest.approx(all_tokens)
        assert all_tokens == tokens
    # V-JEPA, arXiv:2404.08471, section 3.2: masks hide about 90 % with both kinds in mind; by kind, the many
    # small boxes hide some 60 %, the two large ones some 80 %.
    assert many[1] / tokens == pytest.approx(0.39, abs=0.03)
    assert few[1] / tokens == pytest.approx(0.195, abs=0.03)


@pytest.mark.parametrize("name", [name for name in RECIPES if "cooldown" in name])
def test_a_cooldown_has_the_model_and_the_data_of_its_first_phase(name: str) -> None:
    after, before = recipe(name), recipe(name.partition("-cooldown")[0])
    assert after.model == before.model
    assert after.data.shards == before.data.shards
    assert after.objective.masks == before.objective.masks
    assert after.target == before.target
    assert after.optim.lr == before.optim.lr


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("vjepa21")])
def test_half_of_what_2_1_reads_are_pictures(name: str) -> None:
    weights = [source.weight for source in recipe(name).data.sources]
    assert weights == [0.335, 0.1, 0.565, 1.0]


def test_every_frame_of_droid_is_cut_to_the_same_centred_box() -> None:
    rng = np.random.default_rng(0)
    views = {draw_view(720, 1280, recipe("vjepa2-ac-vitg16").augment, rng) for _ in range(50)}
    (view,) = views
    assert (view.height, view.width, view.top, view.left) == (720, 972, 0, 154)
    assert not view.is_mirrored


def without_source(path: Path) -> list[str]:
    """Settings of a recipe with no source: on their line, nor on or right above that of what holds them."""
    document = read_document(path)
    lines = path.read_text(encoding="utf-8").splitlines()

    def is_sourced(key: str) -> bool:
        number = document.lines[key] - 1
        if SOURCE.search(lines[number]):
            return True
        while number > 0 and lines[number - 1].lstrip().startswith("#") and "." in key:
            number -= 1
            if SOURCE.search(lines[number]):
                return True
        return False

    def holders(key: str) -> list[str]:
        parts = key.split(".")
        found = [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
        own = document.lines.get(key)
        # A whole section has one source only where it stands on one line.
        return [
            name for name in found if name in document.lines and ("." in name or document.lines[name] == own)
        ]

    return [
        key
        for key in flatten(document.data)
        if key not in UNSOURCED and not any(is_sourced(name) for name in holders(key))
    ]


@pytest.mark.parametrize("name", RECIPES)
def test_every_value_has_its_source_beside_it(name: str) -> None:
    path = FOLDER / f"{name}.yaml"
    head = path.read_text(encoding="utf-8").partition("\nname:")[0]
    assert "facebookresearch/" in head
    assert re.search(r"arXiv:\d{4}\.\d{5}", head)
    assert without_source(path) == []


@pytest.mark.parametrize("key", ["train.micro_batch", "data.shards.1.weight", "target.momentum.end"])
def test_a_value_without_its_source_is_found(tmp_path: Path, key: str) -> None:
    path = FOLDER / "vjepa2-vitl16.yaml"
    lines: list[Any] = path.read_text(encoding="utf-8").splitlines()
    bare = [re.sub(r"\s*#.*\b(yaml|paper|code|ours)\b.*", "", line) for line in lines]
    (tmp_path / "bare.yaml").write_text("\n".join(bare), encoding="utf-8")
    assert key in without_source(tmp_path / "bare.yaml")
