"""What a person should look at before training on a data set, and why, in sentences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from data_pipeline.card.facts import DARK, STILL, Card
from data_pipeline.card.words import duration, number_of, share, shortened

FEW_EVAL_CLIPS = 100  # below, a number measured on them is mostly chance


@dataclass(frozen=True, slots=True)
class Finding:
    """tone: bad for what will show in a model, fair for what may."""

    tone: Literal["bad", "fair"]
    subject: str
    words: str


def worth_a_look(card: Card) -> list[Finding]:
    """The findings, the bad ones first."""
    found = [*_losses(card), *_balance(card), *_splits(card), *_pictures(card), *_meaning(card)]
    return sorted(found, key=lambda finding: finding.tone)


def _of_kept(num: int, card: Card) -> str:
    return f"{number_of(num, 'kept clips')} ({share(num, card.num_clips['kept'])})"


def _losses(card: Card) -> Iterator[Finding]:
    kept, filtered, failed = (card.num_clips[name] for name in ("kept", "filtered", "failed"))
    tried = kept + filtered + failed
    if not kept:
        yield Finding("bad", "No clips", "Nothing is kept: there is nothing to train on.")
    if tried and filtered > 0.25 * tried:
        by_rule = ", ".join(
            f"{shortened(rule.name)} {share(rule.num_clips, tried)}" for rule in card.rules[:4]
        )
        tone: Literal["bad", "fair"] = "bad" if filtered > 0.5 * tried else "fair"
        words = f"{share(filtered, tried)} of {number_of(tried, 'clips')} were left out: {by_rule}."
        yield Finding(tone, "Much is left out", words)
    if failed:
        words = f"{number_of(failed, 'clips')} ({share(failed, tried)}) could not be decoded or encoded."
        yield Finding("bad" if failed > 0.05 * tried else "fair", "Failed clips", words)
    videos, wanted = card.num_videos["failed"], card.num_videos["failed"] + card.num_videos["usable"]
    if videos:
        words = f"{videos:,} of {number_of(wanted, card.files)} ({share(videos, wanted)}) could not be used."
        yield Finding("bad" if videos > 0.05 * wanted else "fair", "Failed videos", words)
    barren = card.totals.num_without_clips
    if barren > 0.1 * card.num_videos["usable"] and kept:
        usable = number_of(card.num_videos["usable"], f"usable {card.files}")
        words = (
            f"{barren:,} of {usable} without a kept clip: too short for one, or with all of them left out."
        )
        yield Finding("fair", "Videos without clips", words)


def _balance(card: Card) -> Iterator[Finding]:
    groups = card.sources.groups
    if len(groups) > 1 and groups[0].kept_s > 0.6 * card.kept_s:
        words = (
            f"{share(groups[0].kept_s, card.kept_s)} of the kept hours come from {shortened(groups[0].name)}"
        )
        yield Finding("fair", "One source outweighs the others", f"{words}.")
    name, kept_s = card.totals.largest_video
    if card.num_videos["usable"] >= 10 and kept_s > 0.1 * card.kept_s:
        words = (
            f"{share(kept_s, card.kept_s)} of the kept hours come from the single video {shortened(name)}."
        )
        yield Finding("fair", "One video outweighs the others", words)


def _splits(card: Card) -> Iterator[Finding]:
    num = {side.name: side.num_clips for side in card.sides}
    if num["train"] and not num["eval"]:
        yield Finding(
            "fair", "No eval split", "No clip is kept back: nothing can be measured on unseen videos."
        )
    elif 0 < num["eval"] < FEW_EVAL_CLIPS:
        words = f"{number_of(num['eval'], 'clips')} in eval: what is measured on so few is mostly chance."
        yield Finding("fair", "Small eval split", words)
    totals = card.totals
    if totals.num_same_hash_across:
        words = (
            f"{number_of(totals.num_same_hash_across, 'kept clips')} with a twin on the other side "
            f"(equal perceptual hashes): set filters.max_distance to leave copies out."
        )
        yield Finding("bad", "Eval clips that are in train", words)
    if totals.num_same_hash and totals.num_same_hash > 0.001 * card.num_clips["kept"]:
        words = (
            f"{_of_kept(totals.num_same_hash, card)} with the perceptual hash of another; "
            f"filters.max_distance is null, so none were left out for it."
        )
        yield Finding("fair", "Copies", words)
    if card.labels.num_eval_only:
        words = f"{number_of(card.labels.num_eval_only, 'labels')} in eval and in no clip of train."
        yield Finding("fair", "Labels unseen in train", words)


def _pictures(card: Card) -> Iterator[Finding]:
    totals, encode = card.totals, card.config.encode
    enlarged = (
        f"smaller than the short side of {encode.short_side} px: their clips are enlarged and hold no more "
        f"detail"
    )
    repeated = f"with fewer than {encode.fps:g} frames a second: in their clips frames come twice"
    for subject, (num, seconds), lack in (
        ("Enlarged pictures", totals.upscaled, enlarged),
        ("Repeated frames", totals.slow, repeated),
    ):
        if seconds:
            of_hours = f"{duration(seconds)} of clips, {share(seconds, card.kept_s)}"
            words = f"{number_of(num, card.files)} ({of_hours}) {lack}."
            yield Finding("bad" if seconds > 0.2 * card.kept_s else "fair", subject, words)
    if totals.num_vfr:
        words = (
            f"{number_of(totals.num_vfr, 'videos')} with unevenly spaced frames (VFR: phones, screen "
            f"recordings); each tick of a clip takes the frame that was shown then."
        )
        yield Finding("fair", "Variable frame rate", words)
    if card.config.filters.min_motion is None and totals.num_still > 0.02 * card.num_clips["kept"]:
        words = (
            f"{_of_kept(totals.num_still, card)} with hardly any motion (below {STILL:g}); "
            f"filters.min_motion is null, so none were left out for it."
        )
        yield Finding("fair", "Still clips", words)
    if totals.num_dark > 0.02 * card.num_clips["kept"]:
        words = f"{_of_kept(totals.num_dark, card)} with a mean brightness below {DARK:g}."
        yield Finding("fair", "Dark clips", words)


def _meaning(card: Card) -> Iterator[Finding]:
    totals = card.totals
    for what, num in (("state", totals.num_state_names), ("action", totals.num_action_names)):
        if num > 1:
            words = (
                f"The videos have {num} different lists of {what} names, so the set as a whole names none."
            )
            yield Finding("fair", f"{what.capitalize()} names differ", words)
    labels, kept = card.labels, card.num_clips["kept"]
    if labels.num and labels.num_unlabelled:
        words = f"{_of_kept(labels.num_unlabelled, card)} without a label."
        yield Finding("fair", "Clips without a label", words)
    if labels.num > 1 and labels.most[0].num_train + labels.most[0].num_eval > 0.5 * (
        kept - labels.num_unlabelled
    ):
        most = labels.most[0]
        part = share(most.num_train + most.num_eval, kept - labels.num_unlabelled)
        words = f"{part} of the labelled clips are {shortened(most.name)}."
        yield Finding("fair", "One label outweighs the others", words)
