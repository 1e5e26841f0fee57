from data_pipeline.sources.base import (
    VIDEO_ENDINGS,
    Ignored,
    Listing,
    SidecarFile,
    SourceFile,
    Span,
)
from data_pipeline.sources.listing import list_sources

__all__ = ["VIDEO_ENDINGS", "Ignored", "Listing", "SidecarFile", "SourceFile", "Span", "list_sources"]
