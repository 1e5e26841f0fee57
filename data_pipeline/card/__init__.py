from data_pipeline.card.publish import publish_card

__all__ = ["publish_card"]
