"""Pictures of a few held-out clips at steps of a run, which a tracker shows one after the other.

    clip-masks       what is hidden, as drawn at the step
    clip-features    tokens of the target encoder as colours
    clip-attention   what its last block attends to
    clip-neighbours  which clips it finds alike

All ranks run the encoder equally often, as sharded weights need. The first draws, in a thread of its own.
Nothing random is used, and nothing of the training is changed.
Shapes: C clips, T frames, S side, N tokens, D features.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from data_pipeline.errors import ForeframeError
from data_pipeline.format import read_info
from data_pipeline.storage import Storage
from pretrain.attention_maps import LastAttention
from pretrain.config import Plan, RunConfig
from pretrain.data.augment import eval_view, normalise
from pretrain.data.reader import ClipReader
from pretrain.model.vit import Encoder
from pretrain.pictures import of_different_videos
from pretrain.sheets import Pixels, save_small, scale
from pretrain.step_drawings import (
    Seen,
    StableColours,
    draw_attention,
    draw_features,
    draw_masks,
    draw_neighbours,
    liveliest,
    read_scores,
)
from pretrain.strategy.base import Engine
from pretrain.tracking.base import Tracker
from pretrain.tracking.pictures import folder_of_step, step_pictures, take_back_pictures

SHOWN, QUERIES, NEAREST, POOL = 2, 4, 5, 48
MAX_BYTES = 200_000
SCORES = "colours.npz"


@dataclass(frozen=True)
class HeldOut:
    """Clips of a rank. shown: the same on every rank. pool: its part of those among which neighbours are.

    size: different clips in the pools of all ranks; the last ranks may have some of the first again.
    """

    shown: tuple[Pixels, ...]
    pool: tuple[Pixels, ...]
    videos: tuple[str, ...]
    size: int


class StepPictures:
    """`take` is called on every rank at the same steps; `close` before the tracker is closed.

    Where the clips cannot be read there are no pictures, and that is said once.
    """

    def __init__(
        self, run: Path, plan: Plan, engine: Engine, tracker: Tracker, say: Callable[[str], None]
    ) -> None:
        self._run, self._config, self._engine, self._tracker = run, plan.config, engine, tracker
        self._say = say
        world = engine.world
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="step-pictures")
        self._reading: Future[HeldOut] | None = self._threads.submit(
            read_held_out, plan.config, world.rank, world.size
        )
        self._held: HeldOut | None = None
        self._thumbs: list[Pixels] = []
        self._videos: list[str] = []
        self._drawings: list[Future[None]] = []
        self._colours: StableColours | None = None

    def take(self, step: int) -> float:
        """Look at the clips with the encoder as it is now, and have the pictures drawn; seconds it took."""
        began_s = time.perf_counter()
        held = self._clips()
        if held is None:
            return time.perf_counter() - began_s
        encoder = encoder_of(self._engine)
        if self._engine.ema is not None:
            self._engine.ema.ready()
        seen = [look(encoder, clip, self._config) for clip in held.shown]
        mine = pooled(encoder, held.pool, self._config.train.micro_batch)
        everybody = np.stack(self._engine.world.gather_objects(mine))  # (ranks, clips a rank, D)
        if self._engine.world.is_first:
            # rank r has clips r, r + ranks, …
            pooled_CD = everybody.swapaxes(0, 1).reshape(-1, everybody.shape[-1])[: len(self._thumbs)]
            self._drawings = [each for each in self._drawings if not each.done()]
            self._drawings.append(self._threads.submit(self._draw, step, seen, pooled_CD))
        return time.perf_counter() - began_s

    def go_back(self, step: int) -> None:
        """Training goes on from this step: draw what is under way, hand it over, take back what came later.

        Comes before the tracker's own rollback, so that those pictures stay with what is left behind.
        """
        if not self._engine.world.is_first:
            return
        for drawing in self._drawings:
            drawing.result()
        self._drawings.clear()
        self._tracker.flush()  # files that are taken back can no longer be sent
        take_back_pictures(self._run, step)
        self._colours = None  # goes on from where those of the step lay

    def close(self) -> None:
        """Wait until all are drawn and with the tracker."""
        self._threads.shutdown(wait=True)

    def _clips(self) -> HeldOut | None:
        """The clips, once every rank has read its own; None, on every rank, where one could not."""
        if self._reading is None:
            return self._held
        reading, self._reading = self._reading, None
        world = self._engine.world
        try:
            self._held = held = world.own(reading.result)
        except (ForeframeError, OSError) as error:
            if world.is_first:
                self._say(f"no pictures over steps: {error}")
            return None
        thumbs = [scale(clip[len(clip) // 2]) for clip in held.pool]
        rows = zip(*world.gather_objects(list(zip(thumbs, held.videos, strict=True))), strict=True)
        told = [each for row in rows for each in row][: held.size]
        self._thumbs = [thumb for thumb, _ in told]
        self._videos = [video for _, video in told]
        return held

    def _draw(self, step: int, seen: Sequence[Seen], pooled_CD: NDArray[np.float32]) -> None:
        try:
            self._draw_all(step, seen, pooled_CD)
        except Exception as error:  # a picture must not cost a run of weeks; what went wrong is said
            self._say(f"step {step}: its pictures could not be drawn: {type(error).__name__}: {error}")

    def _draw_all(self, step: int, seen: Sequence[Seen], pooled_CD: NDArray[np.float32]) -> None:
        config, folder = self._config, folder_of_step(self._run, step)
        if self._colours is None:
            self._colours = StableColours(scores_before(self._run, step))
        drawn: dict[str, Image.Image | None] = {
            "masks": draw_masks([each.clip for each in seen], config, step),
            "features": draw_features(seen, config, self._colours),
            "attention": draw_attention(seen, config),
        }
        if len(self._thumbs) > NEAREST:
            queries = list(range(min(QUERIES, len(self._thumbs))))
            drawn["neighbours"] = draw_neighbours(pooled_CD, self._thumbs, self._videos, queries, NEAREST)
        folder.mkdir(parents=True, exist_ok=True)
        assert self._colours.scores_N3 is not None
        np.savez_compressed(folder / SCORES, scores=self._colours.scores_N3.astype(np.float16))
        for name, sheet in drawn.items():
            if sheet is not None:
                path = folder / f"clip-{name}.png"
                save_small(path, sheet, MAX_BYTES)
                self._tracker.log_picture(path, step)


def encoder_of(engine: Engine) -> Encoder:
    """The encoder that is learned: the moving average, or the context encoder where there is no other."""
    context = engine.objective.encoder
    if engine.plan.config.learns_in_context or engine.target is None:
        assert context is not None
        return context
    return engine.target


def read_held_out(config: RunConfig, rank: int, ranks: int) -> HeldOut:
    """Clips of the eval split, or, where there is none, of what is trained on.

    Every rank gets equally many for its pool.
    Raises: DataError when one cannot be read.
    """
    root = config.probe.data or config.data.sources[0].shards
    split = "eval" if read_info(Storage(root)).num_clips.get("eval") else config.data.split
    reader = ClipReader(root, split, decoder=config.data.decoder)

    def view(index: int) -> tuple[Pixels, str]:
        clip = reader.read_for(config.data, index)
        return eval_view(clip.frames_THWC, config.data.size).numpy(), clip.meta.video_id

    shown = [view(index)[0] for index in of_different_videos(reader, min(SHOWN, len(reader)))]
    indices = pool_indices(reader)
    each = -(-len(indices) // ranks)
    mine = [view(indices[(rank + ranks * k) % len(indices)]) for k in range(each)]
    clips, videos = zip(*mine, strict=True)
    return HeldOut(tuple(shown), clips, videos, len(indices))


def pool_indices(reader: ClipReader) -> list[int]:
    """Up to POOL clips from the whole split, two neighbours at a time: those of one video often lie together.

    Queries come first: clips of different videos.
    """
    size = min(POOL, len(reader))
    starts = np.unique(np.linspace(0, max(0, len(reader) - 2), max(1, size // 2)).astype(int)).tolist()
    pairs = [n for start in starts for n in (start, start + 1) if n < len(reader)]
    firsts = of_different_videos(reader, min(QUERIES, len(reader)))
    return list(dict.fromkeys([*firsts, *pairs]))


@torch.no_grad()  # inference mode would leave tensors in caches that no later step may train through
def look(encoder: Encoder, clip: Pixels, config: RunConfig) -> Seen:
    """One clip's tokens, and what the last block attended to."""
    query = liveliest(clip, config)
    with LastAttention(encoder) as attention:
        tokens = run(encoder, [clip])[0]
    by_all, by_query = attention.maps(query)
    return Seen(clip, tokens, by_all.cpu().numpy(), by_query.cpu().numpy(), query)


def pooled(encoder: Encoder, clips: Sequence[Pixels], batch: int) -> NDArray[np.float32]:
    """The mean of each clip's tokens (C, D), so many clips a forward."""
    parts = [run(encoder, clips[k : k + batch]).mean(1) for k in range(0, len(clips), batch)]
    means: NDArray[np.float32] = np.concatenate(parts)
    return means


@torch.no_grad()
def run(encoder: Encoder, clips: Sequence[Pixels]) -> NDArray[np.float32]:
    """Tokens of some clips (C, N, D)."""
    device = next(encoder.parameters()).device
    tokens_CND = encoder(normalise(torch.from_numpy(np.stack(clips)).to(device)))
    tokens: NDArray[np.float32] = tokens_CND.float().cpu().numpy()
    return tokens


def scores_before(run: Path, step: int) -> NDArray[np.floating] | None:
    """Where colours lay at the newest step before this one, by an earlier process."""
    folders = {path.parent for at, path in step_pictures(run) if at < step}
    return read_scores(max(folders) / SCORES) if folders else None
