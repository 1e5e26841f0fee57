from data_pipeline.sources.base import (
    PICTURE_ENDINGS,
    VIDEO_ENDINGS,
    Ignored,
    Listing,
    SidecarFile,
    SourceFile,
    Span,
)
from data_pipeline.sources.listing import list_sources
from data_pipeline.sources.match import is_picture, is_video

__all__ = [
    "PICTURE_ENDINGS",
    "VIDEO_ENDINGS",
    "Ignored",
    "Listing",
    "SidecarFile",
    "SourceFile",
    "Span",
    "is_picture",
    "is_video",
    "list_sources",
]
