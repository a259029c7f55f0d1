"""Defines the types of values in a recipe, and the base class of its sections."""

from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

LARGEST_NUMBER = 1e30  # PyTorch has no larger float32 numbers than 3e38, and products of a few stay below that


def _read_number(value: object) -> object:
    """Read `2e-3` as the number that people mean, although YAML 1.1 takes it for a string."""
    if isinstance(value, str) and value.isascii():
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _check_number(value: float) -> float:
    """Refuse numbers that are too large, and what is not a number: no comparison holds for it."""
    if not abs(value) <= LARGEST_NUMBER:
        raise ValueError(f"it must be a finite number up to {LARGEST_NUMBER:g}")
    return value


MOST_LETTERS = 100  # of a name


def _check_name(name: str) -> str:
    if not name.strip() or len(name) > MOST_LETTERS or not name.isprintable():
        raise ValueError(
            f"{name!r:.120} is no name; use 1 to {MOST_LETTERS} letters, digits and signs that can be seen"
        )
    return name


def _check_file_name(name: str) -> str:
    _check_name(name)
    if name != name.strip() or name.startswith(".") or set(name) & set("/\\:"):
        raise ValueError(
            f"{name!r} becomes the name of a folder and is none; use no slash and no colon, and no dot or blank at the "
            "beginning (--output names a folder elsewhere)"
        )
    return name


def no_repetition(what: str) -> AfterValidator:
    """Refuse a list with the same name twice, or with a blank one.

    Args:
        what: what the names are, in the plural, for the message.
    """

    def check(names: list[str] | None) -> list[str] | None:
        twice = next((name for name, times in Counter(names or ()).items() if times > 1), None)
        if twice is not None:
            raise ValueError(f"two {what} are called {twice!r}; name each once")
        if not all(name.strip() for name in names or ()):
            raise ValueError(f"one of the {what} is blank; give each a name")
        return names

    return AfterValidator(check)


Name = Annotated[str, AfterValidator(_check_name)]
"""A name that people read on terminals and pages."""
FileName = Annotated[str, AfterValidator(_check_file_name)]
"""A name that becomes the name of one folder or file, and never a path."""
Number = Annotated[float, BeforeValidator(_read_number), AfterValidator(_check_number)]
Positive = Annotated[Number, Field(gt=0)]
NotNegative = Annotated[Number, Field(ge=0)]
Fraction = Annotated[Number, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, le=2**53)]
Blocks = Literal["all"] | Annotated[str, Field(pattern=r"^(all|last-third|last-[1-9]\d*)$")] | list[int]


class Section(BaseModel):
    """Is the base of a recipe's sections; an unknown key is an error.
    The text below a key is its entry in the reference.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)


def off_or_section(alternatives: str) -> BeforeValidator:
    """Read a section that may be `off`. YAML reads a bare `off` as false, and an empty `section:` as null.

    Args:
        alternatives: what the message for an empty section offers, because empty must not silently mean `off`.
    """

    def read(value: Any) -> Any:
        if value is None:
            raise ValueError(f"it is empty; write {alternatives}")
        return None if value is False or value == "off" else value

    return BeforeValidator(read)


def off_means(value: Any) -> BeforeValidator:
    """Read `off` as the value of a key that switches it off; YAML reads a bare `off` as false."""
    return BeforeValidator(lambda given: value if given is False or given == "off" else given)


ONE_IS_A_LIST = BeforeValidator(lambda given: [given] if isinstance(given, str) else given)
"""Reads one name as a list of names."""
OFF_IS_NONE = off_means(None)
"""Reads `off` where an absent value switches something off."""
WRITE_OFF = PlainSerializer(lambda value: "off" if value is None else value)
"""Writes an absent section as `off`, so that `off_or_section` reads it back."""

CountOrOff = Annotated[Count | None, off_or_section("a whole number above 0, or `off`"), WRITE_OFF]
"""A number, or nothing, which recipes write as `off`."""
