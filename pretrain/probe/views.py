"""Several looks at one clip: segments spread over its time, crops spread over its longer side.

Shapes: S segments, V crops, T frames, H×W pixels, C channels.
"""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from data_pipeline.errors import DataError
from pretrain.config import DataConfig
from pretrain.data.augment import resize
from pretrain.data.reader import Clip, ClipReader, Start

MOST_THREADS = 8  # that decode ahead


def starts(segments: int) -> list[Start | None]:
    """Where the segments begin, spread evenly over the seconds to spare; one is from the clip's beginning.

    Where there is less to spare than the others take they overlap; where there is none they are equal.
    """

    def at(share: float) -> Start:
        return lambda spare_s: spare_s * share

    return [None] if segments == 1 else [at(k / (segments - 1)) for k in range(segments)]


def crops(frames_THWC: Tensor, size: int, views: int) -> Tensor:
    """The short side resized to `size`, squares spread evenly over the long side: uint8 (V, T, S, S, 3).

    One is the centre, and then equal to `eval_view`; of a square picture all are the same.
    Source: the views of V-JEPA, arXiv:2404.08471; three a segment in configs/evals of facebookresearch/jepa.
    """
    height, width = frames_THWC.shape[1:3]
    scale = size / min(height, width)
    view = resize(frames_THWC, max(size, round(height * scale)), max(size, round(width * scale)))
    spare = view.shape[1] - size, view.shape[2] - size
    shares = [0.5] if views == 1 else [k / (views - 1) for k in range(views)]
    cut = []
    for share in shares:
        top, left = math.floor(spare[0] * share), math.floor(spare[1] * share)
        cut.append(view[:, top : top + size, left : left + size])
    return torch.stack(cut)


def looks(clips: Sequence[Clip], size: int, views: int) -> Tensor:
    """All segments of a clip under all crops: uint8 (V, S, T, size, size, 3)."""
    return torch.stack([crops(torch.as_tensor(clip.frames_THWC), size, views) for clip in clips], dim=1)


def read_ahead(
    reader: ClipReader,
    data: DataConfig,
    indices: Sequence[int],
    segments: int = 1,
    on_clip: Callable[[], None] = lambda: None,
) -> Iterator[list[Clip] | DataError]:
    """The segments of each clip, in order, decoded ahead by threads; what is wrong with one in its place.

    Raises: StorageError, RefusedError when the trouble is the store's, not a clip's.
    """
    lock = threading.Lock()  # a reader keeps indexes; decoding, which takes the time, needs none of them
    wanted = starts(segments)

    def read(index: int) -> list[Clip] | DataError:
        with lock:
            sample = reader.fetch([index])[0]
        if isinstance(sample, DataError):
            return sample
        try:
            holds = data.short_clips == "hold"
            return [reader.decode(sample, data.frames, data.fps, start, holds=holds) for start in wanted]
        except DataError as error:
            return error

    count = max(1, min(MOST_THREADS, os.cpu_count() or 1))
    with ThreadPoolExecutor(count, "foreframe-probe") as threads:
        under_way: deque[Future[list[Clip] | DataError]] = deque()
        try:
            for index in indices:
                under_way.append(threads.submit(read, index))
                if len(under_way) > 2 * count:
                    yield under_way.popleft().result()
                    on_clip()
            while under_way:
                yield under_way.popleft().result()
                on_clip()
        finally:
            for future in under_way:
                future.cancel()
