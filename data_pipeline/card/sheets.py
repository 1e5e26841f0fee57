"""Sheets of pictures: three frames of each clip, or its only one, and what is known of it."""

from __future__ import annotations

import base64
from collections.abc import Iterable

from data_pipeline.card.facts import Shown
from data_pipeline.card.markup import code, esc, named
from data_pipeline.card.words import score, share, shortened


def sheet(shown: Iterable[Shown]) -> str:
    return f'<div class="sheet">{"".join(map(_picture, shown))}</div>'


def _picture(shown: Shown) -> str:
    clip, preview = shown.clip, shown.preview
    data = base64.b64encode(preview.jpeg).decode()
    span, frames = f"{clip.start_s:,.2f} to {clip.end_s:,.2f} s", "three frames"
    if clip.num_frames == 1:
        span, frames = f"one frame{f', at {clip.start_s:,.2f} s' if clip.start_s else ''}", "the frame"
    facts = [span]
    if clip.label:
        facts.append(f"label {shortened(clip.label)}")
    if clip.split:
        facts.append(clip.split)
    scores = f"motion {score(clip.motion)}, brightness {score(clip.brightness)}"
    if clip.black is not None and clip.frozen is not None:
        scores += f", black {share(clip.black, 1)}, frozen {share(clip.frozen, 1)}"
    lines = [f"<b>{named(shown.name)}</b>", esc(" · ".join(facts)), esc(scores)]
    if clip.duplicate_of:
        words = shortened(clip.reason.split(":", 1)[-1].strip())
        lines.append(f'<span class="fair">{esc(words)}</span>')
    lines.append(code(clip.clip_id))
    return (
        f'<figure><img alt="{frames} of {esc(shortened(shown.name))}, {span}" width="{preview.width}" '
        f'height="{preview.height}" src="data:image/jpeg;base64,{data}">'
        f"<figcaption>{'<br>'.join(lines)}</figcaption></figure>"
    )
