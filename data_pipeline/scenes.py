"""Where a video's scenes change, by PySceneDetect, which is known to this file alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from data_pipeline.decode import Decoder
from data_pipeline.errors import DataError

CHUNK = 16  # frames in memory at once


def find_cuts(video: Decoder, threshold: float) -> Iterator[float | None]:
    """The times at which a new scene begins, ascending, and None after every 16 frames: a sign of life.

    video: best opened at a small size; PySceneDetect itself looks at pictures some 256 pixels wide.
    threshold: mean change of hue, saturation and value from one frame to the next, of 255.
    Times are seconds since the first frame by the video's own clock, rounded to milliseconds.
    Raises: DataError when PySceneDetect is not installed, or a frame is damaged.

    Every change at or above the threshold counts, however short the scene: PySceneDetect's own least length
    drops cuts that follow each other closely, and a clip would run through those. A dissolve or fade over
    many frames stays below the threshold from each frame to the next and is no cut.
    """
    try:
        import cv2
        from scenedetect import ContentDetector, FrameTimecode
    except ImportError as error:
        raise DataError(
            "cut.kind scenes needs PySceneDetect, which is not installed here: pip install foreframe[scenes]"
        ) from error

    cv2.setNumThreads(1)  # a worker a core is what keeps all cores busy
    detector = ContentDetector(threshold=threshold, min_scene_len=0)
    num_frames = len(video.timestamps_s)
    for start in range(0, num_frames, CHUNK):
        indices = range(start, min(start + CHUNK, num_frames))
        for index, image in zip(indices, video.frames(indices), strict=True):
            # Told numbers of frames, never times: the clock of a variable rate is ours.
            timecode = FrameTimecode(index, fps=1.0)
            for cut in detector.process_frame(timecode, np.ascontiguousarray(image[..., ::-1])):
                yield round(float(video.timestamps_s[cut.frame_num]), 3)
        yield None
