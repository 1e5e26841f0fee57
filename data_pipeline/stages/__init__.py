"""The per-item work of the pipeline: inspect a file, encode the clips of a part; each in a killable child.

Whatever happens to the child becomes a record with its reason. All are idempotent.
"""

from data_pipeline.stages.files import PASSING, ChangedError
from data_pipeline.stages.inspect import inspect_batch, inspect_safely
from data_pipeline.stages.part import EncodeTask, build_part, encode_safely

__all__ = [
    "PASSING",
    "ChangedError",
    "EncodeTask",
    "build_part",
    "encode_safely",
    "inspect_batch",
    "inspect_safely",
]
