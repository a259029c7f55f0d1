"""The kinds of values that a recipe has."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer


def _number(value: object) -> object:
    """YAML 1.1 reads `2e-3` as a string; people mean a number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


Number = Annotated[float, BeforeValidator(_number)]
Positive = Annotated[Number, Field(gt=0)]
NotNegative = Annotated[Number, Field(ge=0)]
Fraction = Annotated[Number, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, le=2**53)]
Blocks = Literal["all"] | Annotated[str, Field(pattern=r"^(all|last-[1-9]\d*)$")] | list[int]


class Section(BaseModel):
    """A part of a recipe; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def stated(instead: str) -> BeforeValidator:
    """Of a section that may be `off`: YAML reads a bare `off` as false, and a bare `section:` as nothing.

    Args:
        instead: what a person should say in the place of nothing, which must not quietly mean `off`.
    """

    def read(value: Any) -> Any:
        if value is None:
            raise ValueError(f"it is empty; say {instead}")
        return None if value is False or value == "off" else value

    return BeforeValidator(read)


OFF_AS_SAID = PlainSerializer(lambda value: "off" if value is None else value)
"""Writes a section that is not there as `stated` reads it."""
