"""The types of values in a recipe, and the base class of its sections."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer


def _read_number(value: object) -> object:
    """YAML 1.1 reads `2e-3` as a string, but people mean a number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


Number = Annotated[float, BeforeValidator(_read_number)]
Positive = Annotated[Number, Field(gt=0)]
NotNegative = Annotated[Number, Field(ge=0)]
Fraction = Annotated[Number, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, le=2**53)]
Blocks = Literal["all"] | Annotated[str, Field(pattern=r"^(all|last-[1-9]\d*)$")] | list[int]


class Section(BaseModel):
    """A section of a recipe; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def off_or_section(alternatives: str) -> BeforeValidator:
    """Reads a section that may be `off`. YAML reads a bare `off` as false, and an empty `section:` as null.

    Args:
        alternatives: what the message for an empty section offers, because empty must not silently mean `off`.
    """

    def read(value: Any) -> Any:
        if value is None:
            raise ValueError(f"it is empty; write {alternatives}")
        return None if value is False or value == "off" else value

    return BeforeValidator(read)


WRITE_OFF = PlainSerializer(lambda value: "off" if value is None else value)
"""Writes an absent section as `off`, so that `off_or_section` reads it back."""
