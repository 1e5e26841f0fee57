"""What every section of settings shares."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveInt = Annotated[int, Field(ge=1, le=10**15)]  # what a float holds, and no run counts to
Range = tuple[float, float]


class Section(BaseModel):
    """A frozen group of settings that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


def ordered(low_high: Range, key: str, low: float, high: float) -> None:
    if not low <= low_high[0] <= low_high[1] <= high:
        raise ValueError(f"{key} is {list(low_high)}: need [small, large] within [{low:g}, {high:g}]")


def first_finding(error: ValidationError) -> str:
    """What is wrong first, in words: the key, where one is at fault, and what is valid."""
    first = error.errors()[0]
    own = first.get("ctx", {}).get("error")  # a rule of ours; pydantic puts "Value error, " before it
    said = str(own) if first["type"] == "value_error" and own else first["msg"]
    return ": ".join([".".join(map(str, first["loc"])), said] if first["loc"] else [said])
