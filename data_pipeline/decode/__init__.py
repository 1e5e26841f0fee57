"""Frames and facts out of video files and bytes: one protocol, decord, PyAV and torchcodec behind it."""

from data_pipeline.decode.base import Decoder, DecoderName, Frames, Size, open_video
from data_pipeline.decode.clip import decode_clip
from data_pipeline.decode.container import refuse_early
from data_pipeline.decode.inspect import VideoFacts, inspect
from data_pipeline.decode.with_pillow import decode_jpegs

__all__ = [
    "Decoder",
    "DecoderName",
    "Frames",
    "Size",
    "VideoFacts",
    "decode_clip",
    "decode_jpegs",
    "inspect",
    "open_video",
    "refuse_early",
]
