"""Frames and facts out of files and bytes: one protocol, and PyAV, decord, torchcodec, Pillow behind it."""

from data_pipeline.decode.base import Decoder, DecoderName, Frames, Size, open_video
from data_pipeline.decode.clip import decode_clip, shown_at
from data_pipeline.decode.container import picture_format, read_head, refuse_early
from data_pipeline.decode.inspect import PICTURE, VideoFacts, inspect, inspect_picture
from data_pipeline.decode.with_pillow import PictureDecoder, decode_jpegs

__all__ = [
    "PICTURE",
    "Decoder",
    "DecoderName",
    "Frames",
    "PictureDecoder",
    "Size",
    "VideoFacts",
    "decode_clip",
    "decode_jpegs",
    "inspect",
    "inspect_picture",
    "open_video",
    "picture_format",
    "read_head",
    "refuse_early",
    "shown_at",
]
