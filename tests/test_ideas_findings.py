"""What docs/ideas.md says was seen is in the results that are kept: a sentence there, a check here."""

from __future__ import annotations

import json
import re
from collections import defaultdict

import pytest

from benchmarks.measuring import RESULTS
from benchmarks.tables import ROOT
from launch.experiment.command import Asked, read_experiment
from launch.experiment.summary import compared
from tests.test_ideas import PAGES

UNTRAINED = "untrained encoder"
Values = dict[str, dict[str, list[float]]]


def values_of(name: str) -> Values:
    """By arm and measure the numbers of all seeds, of an experiment without levels."""
    (found,) = levels_of(name).values()
    return found


def levels_of(name: str) -> dict[float | None, Values]:
    """The same of each level."""
    path = RESULTS / f"experiment_{name}.json"
    if not path.exists():
        pytest.skip(f"{name} was not measured yet")
    found: dict[float | None, Values] = defaultdict(lambda: defaultdict(dict))
    for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
        found[row["level"]][row["arm"]][row["metric"]] = row["values"]
    return found


def curve_of(name: str, unit: str, arm: str) -> list[float]:
    """The mean over seeds of one measure, as the first figure draws it."""
    panels = json.loads((RESULTS / f"experiment_{name}.json").read_text(encoding="utf-8"))["plots"][0][
        "panels"
    ]
    (curves,) = [panel["curves"] for panel in panels if panel["unit"] == unit]
    (found,) = [curve["mean"] for curve in curves if curve["name"] == arm]
    assert isinstance(found, list)
    return found


def mean(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers)


def told_apart(ours: list[float], theirs: list[float]) -> bool:
    """Whether the mean difference, seed by seed, lies outside of its 95 % interval."""
    difference, half = compared(dict(enumerate(ours)), dict(enumerate(theirs)))
    assert difference is not None and half is not None
    return abs(difference) > half


def said_in_both(*numbers: int) -> None:
    """These numbers stand beside each other in the prose of both languages, in either order."""
    for page in PAGES:
        prose = re.sub(r"<!-- table.*?<!-- end -->", "", (ROOT / page).read_text(), flags=re.DOTALL)
        found = {tuple(sorted(map(int, each))) for each in re.findall(r"(\d+) (?:of|次中有) (\d+)", prose)}
        assert tuple(sorted(numbers)) in found, page


def findings_name(experiment: str, *numbers: float) -> None:
    """What is said below the experiment's table has these numbers, to two places, in both languages."""
    findings_say(experiment, *(f"{number:.2f}" for number in numbers))


def findings_say(experiment: str, *numbers: str) -> None:
    """The same of numbers as they stand there."""
    for page in PAGES:
        _, _, below = (ROOT / page).read_text().partition(f"<!-- table: experiment_{experiment} -->")
        prose = re.split(r"<!-- table|\n## ", below.partition("<!-- end -->")[2])[0]
        found = re.findall(r"\d+(?:\.\d+)?", prose)
        assert [number for number in numbers if number not in found] == [], f"{page}, {experiment}"


def wide(numbers: list[float]) -> float:
    return max(numbers) - min(numbers)


def test_collapse() -> None:
    seen = values_of("collapse")
    whole, dead = seen["average, stop-gradient"], seen["no average, gradient"]
    loss, std, rank = "loss of prediction", "feature std", "rank"

    for measure in ("radius", "shape"):
        assert mean(whole[measure]) > mean(seen[UNTRAINED][measure])
        assert told_apart(whole[measure], seen[UNTRAINED][measure])
    assert not told_apart(whole["velocity"], seen[UNTRAINED]["velocity"])
    assert mean(seen[UNTRAINED]["shape"]) < 1 / 3, "chance"
    findings_name("collapse", mean(whole["shape"]))

    begun = {measure: curve_of("collapse", measure, "average, stop-gradient")[0] for measure in (std, rank)}
    trained = [arm for arm in seen if arm != UNTRAINED]
    assert all(mean(seen[arm][rank]) < begun[rank] for arm in trained)
    assert {mean(seen[arm][std]) < begun[std] for arm in trained} == {True, False}
    findings_name("collapse", begun[std])
    findings_say("collapse", f"{begun[rank]:.0f}")

    others = [arm for arm in seen if arm not in ("no average, gradient", "supervised", UNTRAINED)]
    assert max(dead[loss]) < min(mean(seen[arm][loss]) for arm in others)
    assert max(dead[std]) < 0.01
    assert max(dead[rank]) < 1.5
    assert max(dead["radius"]) < min(seen[UNTRAINED]["radius"])
    assert min(seen[UNTRAINED]["position"]) > 0.95, "position is given away"

    stopped = seen["no average, stop-gradient"]
    assert min(stopped[std]) > 0.5
    assert 0.4 < mean(stopped[rank]) / mean(whole[rank]) < 0.6
    assert mean(stopped["velocity"]) < min(seen[UNTRAINED]["velocity"])
    assert wide(stopped["radius"]) > 5 * wide(whole["radius"])

    pulled = seen["average, gradient"]
    assert mean(pulled[std]) > max(mean(seen[arm][std]) for arm in others if arm != "average, gradient")
    assert min(pulled[loss]) > max(max(seen[arm][loss]) for arm in others if arm != "average, gradient")

    curve = curve_of("collapse", loss, "average, gradient")
    least = curve.index(min(curve))
    assert 0 < least < len(curve) - 1
    findings_name("collapse", curve[0], curve[least], curve[-1])

    for arm in ("VICReg, gradient", "SIGReg, gradient"):
        assert mean(seen[arm][std]) > 0.3
        assert max(seen[arm][rank]) < 5
    assert sorted(value < 0.05 for value in seen["SIGReg, gradient"][std]) == [False] * 4 + [True]
    findings_name("collapse", min(seen["SIGReg, gradient"][std]))

    frozen = seen["frozen target"]
    assert min(frozen["velocity"]) > mean(whole["velocity"])
    assert mean(frozen["radius"]) > mean(whole["radius"]) - 0.05


def test_noise() -> None:
    seen = levels_of("noise")
    assert list(seen) == [0.1, 0.5, 0.8, 0.95]
    few, half, most, nearly_all = seen.values()
    many = (half, most, nearly_all)
    leaves, pooled, drift, waves = (
        "features, by leaves",
        "pooled, by leaves",
        "background drift",
        "background waves",
    )
    latent, pixel, contrastive, supervised = (
        f"{arm}, 1e-3" for arm in ("latent", "pixel", "contrastive", "supervised")
    )

    is_less: list[bool] = []
    for share, level in seen.items():
        for rate in ("3e-4", "1e-3", "3e-3"):
            for measure in (leaves, pooled):
                ours, theirs = level[f"latent, {rate}"][measure], level[f"pixel, {rate}"][measure]
                assert mean(ours) < mean(theirs)
                is_less += [one < other for one, other in zip(ours, theirs, strict=True)]
        assert share is not None
        own = [share] * 5  # of the variance of pixels, as the world is set
        assert share < mean(level[pixel][leaves]) and told_apart(level[pixel][leaves], own)
        assert mean(level[latent][leaves]) < share
        assert told_apart(level[latent][leaves], own) == (share >= 0.8)
        assert (mean(level["latent, 3e-4"][leaves]) < share) == (share >= 0.8)
        assert (max(level[latent][leaves]) < share) == (share >= 0.8)
        assert mean(level[pixel][pooled]) < mean(level[UNTRAINED][pooled])
    said_in_both(sum(is_less), len(is_less))
    assert mean(nearly_all[latent][leaves]) > 0.85

    untold = [arm for arm in half if arm != supervised]
    for level in (most, nearly_all):
        assert mean(level[latent]["position"]) > mean(level[pixel]["position"]) + 0.05
        assert max(mean(level[arm]["velocity"]) for arm in untold) < 0.1
        assert max(level, key=lambda arm: mean(level[arm][pooled])) == supervised
        assert mean(level[supervised]["position"]) < mean(level[latent]["position"])
    assert max(mean(each["position"]) for each in nearly_all.values()) < 0.35
    assert max(untold, key=lambda arm: mean(half[arm]["velocity"])) == pixel
    assert mean(few[pixel]["velocity"]) > mean(few[latent]["velocity"]) + 0.1

    for level in seen.values():
        assert mean(level[contrastive][pooled]) < mean(level[latent][pooled]) + 0.03
        assert mean(level[contrastive]["position"]) > mean(level[latent]["position"]) - 0.02
        assert wide([mean(level[arm][waves]) for arm in (latent, pixel, contrastive)]) < 0.04
    for level in many:
        assert max(level, key=lambda arm: mean(level[arm][drift])) == pixel
    read = [mean(level[latent][drift]) for level in seen.values()]
    assert read == sorted(read)


def test_pooling() -> None:
    seen, noise = levels_of("pooling"), levels_of("noise")
    assert list(seen) == [0.1, 0.8]
    untold = ("latent", "pixel", "contrastive", UNTRAINED)
    where = ("position", "velocity", "background waves")
    most = max(mean(level[arm][what]) for level in seen.values() for arm in untold for what in where)
    drifts = {arm: mean(seen[0.8][arm]["background drift"]) for arm in untold}
    assert max(drifts, key=lambda arm: drifts[arm]) == "pixel"
    assert all(drift < 0.05 for arm, drift in drifts.items() if arm != "pixel")
    told = [mean(level["supervised"]["position"]) for level in seen.values()]
    assert told[0] > 0.9
    findings_name("pooling", most, drifts["pixel"], told[1])
    pairs = [
        (one, other)
        for share, level in seen.items()
        for arm in ("latent", "pixel", "contrastive", "supervised")
        for one, other in zip(level[arm]["shape"], noise[share][f"{arm}, 1e-3"]["shape"], strict=True)
    ]
    said_in_both(sum(one == other for one, other in pairs), len(pairs))
    assert max(abs(one - other) for one, other in pairs) == pytest.approx(1 / 120, abs=1e-4), "a clip"


def test_chance() -> None:
    seen = levels_of("chance")
    assert list(seen) == [0.05, 0.2, 0.8, 3.2]
    new, _, fast, slow = seen.values()
    leaves, pooled = "features, by leaves", "pooled, by leaves"

    latent = [mean(level["latent"][leaves]) for level in seen.values()]
    assert latent == sorted(latent)
    assert mean(new["latent"][leaves]) == min(mean(each[leaves]) for each in new.values())
    assert mean(slow["latent"][leaves]) > 0.8, "the share of pixels is 0.8"

    for level in seen.values():
        assert mean(level["pixel"][leaves]) > mean(level["latent"][leaves])
        assert mean(level["pixel"][pooled]) > mean(level["latent"][pooled])
        assert mean(level["contrastive"][pooled]) < 0.1
        assert mean(level["supervised"]["velocity"]) > 0.6
        for arm in ("latent", "contrastive", UNTRAINED):
            assert mean(level[arm]["velocity"]) < 0.1
        waves = [mean(each["background waves"]) for each in level.values()]
        assert wide(waves) < 0.1
    assert max(new["pixel"][leaves]) < 0.7, "the share of pixels is 0.8"
    at_most = [mean(level["pixel"]["velocity"]) for level in seen.values()]
    assert [number > 0.1 for number in at_most] == [True, True, False, False]
    findings_name("chance", *at_most[:2])
    trained = ("latent", "pixel", "contrastive", "supervised")
    assert wide([mean(new[arm]["position"]) for arm in trained]) < 0.02
    for level in (fast, slow):
        assert min(trained, key=lambda arm: mean(level[arm]["position"])) == "pixel"
    drift = [[mean(level[arm]["background drift"]) for arm in trained[:3]] for level in (slow, fast)]
    assert wide(drift[0]) < 0.03
    assert 0.05 < drift[1][1] - max(drift[1][0], drift[1][2]) < 0.1


def test_actions() -> None:
    seen = values_of("actions")
    horizons = (1, 4, 8, 16)

    def errs(arm: str, measure: str, far: int) -> list[float]:
        return seen[arm][f"{measure}, {far}"]

    exceptions: set[tuple[str, str, int]] = set()
    for rate in ("", ", 2e-3"):
        true = f"true actions{rate}"
        for what in ("features", "at the object", "position"):
            for far in horizons:
                for other in ("shuffled actions", "zero actions"):
                    ours, theirs = errs(true, what, far), errs(other + rate, what, far)
                    assert mean(ours) < mean(theirs)
                    is_in_each = all(one < two for one, two in zip(ours, theirs, strict=True))
                    if not (is_in_each and told_apart(ours, theirs)):
                        exceptions.add((true, other, far))
                        assert what == "features"
                    assert is_in_each or rate
    far_from_none = {("true actions", "zero actions", 16), ("true actions, 2e-3", "zero actions", 16)}
    assert exceptions == far_from_none
    reversed_in = sum(
        one > two
        for one, two in zip(
            errs("true actions, 2e-3", "features", 16),
            errs("zero actions, 2e-3", "features", 16),
            strict=True,
        )
    )
    assert reversed_in == 1

    true, others = seen["true actions"], seen["shuffled actions"]
    assert told_apart(true["features, 1, others'"], [1.0] * 5)
    findings_name("actions", mean(true["features, 1, others'"]), mean(true["features, 1"]))
    assert abs(mean(others["features, 1, others'"]) - mean(others["features, 1"])) < 0.005

    assert not told_apart(true["position, 16"], true["mean, 16"])
    for measure in ("position, 16", "mean, 16", "true features, 16"):
        findings_say("actions", f"{mean(true[measure]):.3f}")
    assert sorted(value > 1 for value in true["at the object, 1"]) == [False] * 4 + [True]

    bare, told = seen["encoder not trained"], seen["supervised encoder"]
    for far in horizons:
        key = f"position, {far}"
        assert all(one < two for one, two in zip(bare[key], true[key], strict=True))
        assert mean(told[key]) < mean(bare[key])
    for arm in (bare, true):
        findings_say("actions", *(f"{mean(arm[f'position, {far}']):.3f}" for far in (1, 16)))
    findings_name("actions", *(mean(arm["copy of features, 1"]) for arm in (true, bare, told)))

    walled, bare_walled, told_walled = (
        seen[f"{arm}, walls"] for arm in ("true actions", "encoder not trained", "supervised encoder")
    )
    assert told_apart(walled["features, 16"], [1.0] * 5)
    findings_name("actions", mean(walled["features, 1"]), mean(walled["features, 16"]))
    for arm in (walled, true, told_walled):
        findings_say("actions", f"{mean(arm['true features, 1']):.3f}")
    assert mean(bare_walled["true features, 1"]) > mean(walled["true features, 1"])
    for far in horizons:
        key = f"position, {far}"
        assert not told_apart(bare_walled[key], walled[key])
        assert all(one < two for one, two in zip(told_walled[key], walled[key], strict=True))


def test_recipe() -> None:
    """The advice of docs/train.md, "Training on one GPU", rests on these too."""
    seen = values_of("recipe")
    own, untrained = seen["as in the demo"], seen[UNTRAINED]
    learned = [arm for arm in seen if told_apart_in(seen, arm, "radius", UNTRAINED)]
    fast, slow, many, few = (
        seen[arm] for arm in ("learning rate 3e-3", "learning rate 3e-4", "batches of 32", "batches of 4")
    )
    assert set(seen) - set(learned) == {"learning rate 3e-3", "supervised", UNTRAINED}
    assert min(untrained["position"]) > 0.95
    assert max(mean(each["shape"]) for each in seen.values()) < 0.4

    assert told_apart(fast["velocity"], own["velocity"])
    assert mean(fast["velocity"]) < mean(untrained["velocity"])
    assert sorted(value < min(untrained["radius"]) for value in fast["radius"]) == [False] * 4 + [True]
    for measure in ("position", "velocity", "radius", "shape"):
        assert not told_apart(slow[measure], own[measure])
        assert not told_apart(few[measure], own[measure])
    assert told_apart(slow["velocity"], untrained["velocity"])
    assert mean(slow["velocity"]) > mean(untrained["velocity"])
    assert not told_apart(own["velocity"], untrained["velocity"])

    assert mean(many["radius"]) < mean(own["radius"]) and told_apart(many["radius"], own["radius"])
    for arm in ("momentum 0.9", "momentum 0.999"):
        for measure in ("position", "velocity", "radius", "shape"):
            is_said = (arm, measure) == ("momentum 0.999", "radius")
            assert told_apart(seen[arm][measure], own[measure]) == is_said
    assert 0.015 < mean(own["radius"]) - mean(seen["momentum 0.999"]["radius"]) < 0.025

    published, tubes = seen["masks as published"], seen["tubes, 75 % hidden"]
    for each in (published, tubes):
        assert not any(
            told_apart(each[measure], own[measure]) for measure in ("position", "velocity", "radius", "shape")
        )
    saved = 1 - mean(published["TFLOP"]) / mean(own["TFLOP"])
    for page in PAGES:
        assert f"{100 * saved:.0f} %" in (ROOT / page).read_text().rpartition("<!-- end -->")[2]
    assert 0.45 < mean(tubes["TFLOP"]) / mean(own["TFLOP"]) < 0.55
    assert [value < mean(own["feature std"]) / 2 for value in sorted(tubes["feature std"])] == [True] * 2 + [
        False
    ] * 3

    small = seen["weights begin as published (0.02)"]
    for measure in ("radius", "velocity"):
        assert mean(small[measure]) < mean(own[measure]) and told_apart(small[measure], own[measure])
    told = seen["supervised"]
    assert mean(told["position"]) < mean(untrained["position"]) and mean(told["shape"]) < 1 / 3
    left = 0.999 ** shipped_steps("recipe")
    assert f"{100 * left:.0f} % what it began as" in (ROOT / "docs/train.md").read_text()
    ranked = sorted(seen, key=lambda arm: mean(seen[arm]["loss"]) if arm != UNTRAINED else 9.0)
    assert set(ranked[:2]) == {"tubes, 75 % hidden", "weights begin as published (0.02)"}


def shipped_steps(name: str) -> int:
    """Of the last stage's runs, but for arms with others."""
    steps = read_experiment(Asked(name)).last.settings["train.steps"]
    assert isinstance(steps, int)
    return steps


def told_apart_in(seen: Values, arm: str, measure: str, other: str) -> bool:
    return arm != other and told_apart(seen[arm][measure], seen[other][measure])
