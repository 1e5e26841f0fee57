"""dataset.html: the data card, one page for people, written when the data set is."""

from __future__ import annotations

from collections.abc import Sequence

from data_pipeline.card.findings import worth_a_look
from data_pipeline.card.numbers import count_all
from data_pipeline.card.page import page
from data_pipeline.config import DataConfig
from data_pipeline.format import CARD_FILE, DatasetInfo
from data_pipeline.manifest import Clip, Video
from data_pipeline.previews import read_previews
from data_pipeline.storage import Storage


def publish_card(
    storage: Storage, config: DataConfig, info: DatasetInfo, videos: Sequence[Video], clips: Sequence[Clip]
) -> None:
    """Write dataset.html. videos, clips: all rows of videos.parquet and of the manifest, in any order.

    Equal rows give equal bytes. Pictures come from previews.parquet where there is one.
    """
    card = count_all(config, info, videos, clips, read_previews(storage))
    storage.publish(CARD_FILE, page(card, worth_a_look(card)).encode("utf-8", "backslashreplace"))
