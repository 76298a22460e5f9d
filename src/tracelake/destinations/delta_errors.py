"""What delta-rs raises, as errors of ours; the one place of this room that knows its errors."""

from __future__ import annotations

import re
from typing import Protocol

from tracelake.errors import DeliveryError, MissingDependencyError, PermanentDeliveryError, TransientDeliveryError
from tracelake.redaction import one_line

# What delta-rs and its object stores say, in the text of one catch-all error, when trying again cannot help.
_PERMANENT = re.compile(
    r"access.?denied|permission.?denied|forbidden|unauthorized|not authorized|\b40[13]\b|NoSuchBucket"
    r"|InvalidAccessKeyId|SignatureDoesNotMatch|os error 13\b|os error 30\b|read-only file system|not a directory",
    re.IGNORECASE,
)
_CERTIFICATE = re.compile(r"invalid peer certificate", re.IGNORECASE)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# What delta-rs says of a table that it does not know how to write, whatever else it takes that for.
_CATALOG_MANAGED = re.compile(r"catalog-managed|catalogOwned", re.IGNORECASE)
_UNSUPPORTED = re.compile(r"\bunsupported\b|\bis not supported\b", re.IGNORECASE)


class ReportsError(Protocol):
    """What delta-rs reads rows from; it keeps the error that ended it, of which delta-rs has only the text."""

    error: Exception | None


def need_delta(location: str) -> None:
    """See that delta-rs and pyarrow are there.

    Raises:
        MissingDependencyError: they are not.
    """
    try:
        import deltalake  # noqa: F401
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f"Writing to {location} needs the package {error.name!r}, which is not installed here. "
            "Run: pip install 'tracelake[delta]'"
        ) from error


class Translated:
    """Turns what delta-rs raises into a DeliveryError that names the table; the one place that knows its errors."""

    def __init__(self, location: str, rows: ReportsError | None = None) -> None:
        self._location = location
        self._rows = rows

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if error is None:
            return
        if self._rows is not None and self._rows.error is not None:
            error = self._rows.error
        translated = translate(error, self._location)
        if translated is not None:
            raise translated from None  # the text of a store may repeat what it was sent: keys, tokens


def translate(error: BaseException, location: str) -> DeliveryError | None:
    """Return the DeliveryError for what delta-rs, pyarrow or the system raised; None for what is none of theirs."""
    import pyarrow as pa
    from deltalake import exceptions

    if isinstance(error, DeliveryError):
        return None if location in str(error) else type(error)(f"The table {location}: {error}")
    text = one_line(" ".join(_COLOUR.sub("", str(error)).split())) or type(error).__name__
    known = isinstance(error, exceptions.DeltaError)
    if known and _CATALOG_MANAGED.search(text):
        return PermanentDeliveryError(
            f"The table {location} takes no writes to its files: its commits are managed by its catalog, and one "
            "behind its back would be lost. Write to it by its name in the catalog, with TRACELAKE_TRANSPORT=otlp, or "
            "name another table."
        )
    if known and _UNSUPPORTED.search(text):
        return PermanentDeliveryError(
            f"The table {location} cannot take spans: delta-rs does not write such tables: {text}. Update deltalake, "
            "or name another table."
        )
    if isinstance(error, exceptions.CommitFailedError):
        return TransientDeliveryError(f"A commit to {location} lost against another writer: {text}. It is tried again.")
    if isinstance(error, (exceptions.SchemaMismatchError, exceptions.DeltaProtocolError)):
        return PermanentDeliveryError(
            f"The table {location} cannot take spans: {text}. Change the table, or name another."
        )
    # A panic of delta-rs is a BaseException of no public type.
    if (
        isinstance(error, (exceptions.DeltaError, pa.ArrowException, OSError, MemoryError))
        or type(error).__name__ == "PanicException"
    ):
        if _CERTIFICATE.search(text):
            return PermanentDeliveryError(
                f"The certificate of the store of {location} is not trusted: {text}. Set SSL_CERT_FILE to the "
                "certificate of its authority."
            )
        if isinstance(error, PermissionError) or _PERMANENT.search(text):
            return PermanentDeliveryError(
                f"The table {location} cannot be written: {text}. Repair the access, or name another table."
            )
        return TransientDeliveryError(f"Writing to {location} failed: {text}. It is tried again.")
    return None
