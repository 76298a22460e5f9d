"""The annotations of the traces of a workspace, as rows of a table that are only ever added."""

from __future__ import annotations

from collections.abc import Sequence

from tracelake.spans.annotations import Annotation, Clock, to_arrow, to_rows
from tracelake.testing.state import Table
from tracelake.testing.storage.lakehouse import Lakehouse
from tracelake.testing.web.http import ApiError


class Annotations:
    """Adds to tables of annotations."""

    def __init__(self, lakehouse: Lakehouse) -> None:
        self._lakehouse = lakehouse
        self._clock = Clock()

    def add(self, table: Table, principal: str, annotations: Sequence[Annotation]) -> None:
        """Add versions of annotations, which are committed when this returns; each is later than any before.

        Raises:
            ApiError: 400 INVALID_PARAMETER_VALUE, a value cannot be in a VARIANT.
        """
        if not annotations:
            return
        try:
            batch = to_arrow(to_rows(annotations, principal, self._clock), self._lakehouse.schema(table))
        except (OverflowError, UnicodeEncodeError) as error:
            raise ApiError(400, "INVALID_PARAMETER_VALUE", f"A value cannot be stored: {error}.") from error
        self._lakehouse.append(table, batch)
