"""Defines a site's policy: what its operator allows a server to ask of this site.
What the file does not allow is refused.
"""

from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from fftmoe.config import Section
from fftmoe.config.fields import Count, Number, Positive
from fftmoe.errors import InputError
from fftmoe.strict import strict_yaml

Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Mode = Literal["none", "sums", "clients", "examples"]
NOISY = ("clients", "examples")
MOST_PROBLEMS = 9  # of a policy, in one message


class ColumnRights(Section):
    """Names the columns that a recipe may read, for each use: the input, the answers, the natural client,
    the strata.
    """

    text: list[str] = Field(default_factory=list)
    label: list[str] = Field(default_factory=list)
    client: list[str] = Field(default_factory=list)
    strata: list[str] = Field(default_factory=list)


class PrivacyRights(Section):
    """States the kinds of privacy that are enough for this site, and what its rows may lose in all runs together.

    `modes` lists kinds: `none`, `sums` (`privacy: {}` of a recipe), `clients` (noise of the server), `examples` (noise
    of this site). With `clients` or `examples`, the site's ledger counts until `epsilon` is reached at `delta`.
    """

    modes: list[Mode]
    epsilon: Positive | None = None
    delta: Annotated[Number, Field(gt=0, lt=1)] | None = None

    @model_validator(mode="after")
    def _budget_where_counted(self) -> "PrivacyRights":
        counted = bool(self.modes) and all(mode in NOISY for mode in self.modes)
        if counted and (self.epsilon is None or self.delta is None):
            raise ValueError(f"privacy.modes={self.modes} needs privacy.epsilon and privacy.delta; add both")
        if not counted and (self.epsilon is not None or self.delta is not None):
            raise ValueError(
                f"privacy.modes={self.modes} lets something leave without noise, which no epsilon bounds; leave out "
                "`none` and `sums`, or leave out privacy.epsilon and privacy.delta"
            )
        return self


class SitePolicy(Section):
    """States what a server may ask of a site.

    `recipes` lists the digests of approved recipes. `fields` allows other recipes: for each key that is not at its
    default, the values that it may have, `any`, or a range such as `{most: 20}`.
    `labels` names the classes that the site may be asked for, where an approved recipe does not state `data.labels`.
    `backbones` lists names as recipes give them. A folder that a recipe names needs no entry if the site is started
    with `--model`, because the site then reads its own.
    `fewest_rows` is the number of rows below which the site takes no part and gives no answer; a site that may not
    name its rows reports this number. `fewest_rows_of_label` is the number of rows of a label below which they are in
    no sum that is made for each label. `most_rounds` is how often it trains, over all runs.
    `ledger` is the folder of the ledger, which all sites with the same rows must share. `mark` is a file outside the
    site's folder that says how far the ledger was, so that an older copy of the whole folder is noticed.
    """

    recipes: list[Digest] = Field(default_factory=list)
    fields: dict[str, Any] = Field(default_factory=dict)
    labels: list[str] | None = None
    columns: ColumnRights = ColumnRights()
    tasks: list[Literal["profile", "training", "feature-sums", "evaluation"]] = Field(default_factory=list)
    privacy: PrivacyRights = PrivacyRights(modes=[])
    backbones: list[str] = Field(default_factory=list)
    fewest_rows: Count | None = None
    fewest_rows_of_label: Count | None = None
    most_rounds: Annotated[int, Field(ge=0, le=2**53)] = 0
    name_counts: bool = False
    ledger: Annotated[str, Field(min_length=1)] = "."
    mark: Annotated[str, Field(min_length=1)] | None = None


@lru_cache(maxsize=4)
def parse_policy(text: bytes, where: str) -> SitePolicy:
    """Return the policy in these bytes; the last few are kept, because a site reads its policy for every request.

    Args:
        where: the file, for messages.

    Raises:
        InputError: it is not a policy.
    """
    try:
        values = strict_yaml(text)
        if not isinstance(values, dict):
            raise ValueError("it must be a mapping of keys")
        return SitePolicy.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(_problem(found) for found in error.errors()[:MOST_PROBLEMS])
        raise InputError(f"the policy {where} is not valid: {problems}; correct it (docs/deploy.md)") from None
    except ValueError as error:
        raise InputError(f"the policy {where} cannot be read: {error}; correct the file") from error


def _problem(error: Any) -> str:
    """Return one error of pydantic: where, and what."""
    path = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"unknown key {path!r}"
    value = "" if isinstance(error["input"], dict | BaseModel) else f" (value: {error['input']!r:.60})"
    return f"{path + ': ' if path else ''}{error['msg'].removeprefix('Value error, ')}{value}"
