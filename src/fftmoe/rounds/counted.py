"""Checks whether the account of a private run still holds all that the run has counted.

Every row says how much was counted when it was written, which was after the account. So an account that holds less is
an older copy, and a row that says nothing belongs to a round without the noise that the account is about.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fftmoe.errors import InputError


def check_account(rows: Iterable[Mapping[str, Any]], counted: int, of: str, spent: str, account: Path) -> None:
    """Refuse an account of a run that holds less than the rows of the run say.

    Args:
        rows: of the run so far. Rows of older versions of this package do not say what was counted, and pass.
        counted: by the account. of: the key under which rows say the same.
        spent: the key under which every row of a private round has its epsilon.
        account: the file, for messages.

    Raises:
        InputError: the account is an older copy, or a round was made without noise.
    """
    for row in rows:
        if row["round"] and spent not in row:
            raise InputError(
                f"round {row['round']} of this run was made without the noise that {account} counts, so no epsilon "
                "covers the run; go on with the privacy that this round was made with, or start a new run"
            )
        if (said := row.get(of, 0)) > counted:
            raise InputError(
                f"{account} is an older copy: it counts {of} {counted}, and the row of round {row['round']} says "
                f"{said}, so what the run has spent of its clients' privacy is unknown; restore the newest file, or "
                "start a new run"
            )
