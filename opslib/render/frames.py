"""Facts rows and findings → a pandas frame, for an investigation by hand."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING

from opslib.render.words import row_of

if TYPE_CHECKING:
    import pandas as pd


def frame(rows: Iterable[object]) -> pd.DataFrame:
    """
    Return rows as a frame: one column per field, instants (`…_at`) as aware UTC datetimes.

    An instant that no calendar holds becomes NaT. No rows make an empty frame without columns.

    Raises:
        TypeError: If a thing in `rows` is no row.
    """
    # Imported here: pandas takes a quarter of a second, and a runbook that runs by itself never needs it.
    import pandas as pd

    table = pd.DataFrame([dict(row_of(row)) for row in rows])
    for name in table.columns:
        if str(name).endswith("_at"):
            table[name] = _instants(table[name])
    return table


def _instants(column: pd.Series) -> pd.Series:
    import pandas as pd

    seconds = [value.timestamp() if isinstance(value, datetime) else value for value in column]
    return pd.Series(
        pd.to_datetime(
            pd.to_numeric(pd.Series(seconds, dtype=object), errors="coerce"), unit="s", utc=True, errors="coerce"
        ).array,
        index=column.index,
        name=column.name,
    )
