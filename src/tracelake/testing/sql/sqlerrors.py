"""What is wrong with a SQL statement, in Databricks' words.

Conditions: https://docs.databricks.com/aws/en/error-messages/error-classes
"""

from __future__ import annotations

import re

from tracelake.errors import TracelakeError
from tracelake.redaction import redact
from tracelake.testing.web.http import ApiError

_STATES = {
    "ARITHMETIC_OVERFLOW": "22003",
    "CAST_INVALID_INPUT": "22018",
    "CATALOG_ALREADY_EXISTS": "42710",
    "CATALOG_NOT_FOUND": "42704",
    "DATATYPE_MISMATCH": "42K09",
    "DELTA_NOT_NULL_CONSTRAINT_VIOLATED": "23502",
    "DIVIDE_BY_ZERO": "22012",
    "EXPECT_VIEW_NOT_TABLE": "42809",
    "FAILED_READ_FILE": "KD001",
    "INSERT_COLUMN_ARITY_MISMATCH": "21S01",
    "INSUFFICIENT_PERMISSIONS": "42501",
    "INVALID_ARRAY_INDEX": "22003",
    "INVALID_PARAMETER_VALUE": "22023",
    "INVALID_VARIANT_CAST": "22023",
    "INVALID_VARIANT_GET_PATH": "22023",
    "PARSE_EMPTY_STATEMENT": "42617",
    "PARSE_SYNTAX_ERROR": "42601",
    "PRINCIPAL_NOT_FOUND": "42704",
    "RECURSIVE_VIEW": "42K0H",
    "SCHEMA_ALREADY_EXISTS": "42P06",
    "SCHEMA_NOT_EMPTY": "2BP01",
    "SCHEMA_NOT_FOUND": "42704",
    "TABLE_OR_VIEW_ALREADY_EXISTS": "42P07",
    "TABLE_OR_VIEW_NOT_FOUND": "42P01",
    "UNBOUND_SQL_PARAMETER": "42P02",
    "UNRESOLVED_COLUMN": "42703",
    "UNSUPPORTED_FEATURE": "0A000",
    "WRONG_COMMAND_FOR_OBJECT_TYPE": "42809",
}
# By the error code of the REST API for the same.
_CONDITIONS = {
    "CATALOG_DOES_NOT_EXIST": "CATALOG_NOT_FOUND",
    "SCHEMA_DOES_NOT_EXIST": "SCHEMA_NOT_FOUND",
    "TABLE_DOES_NOT_EXIST": "TABLE_OR_VIEW_NOT_FOUND",
    "CATALOG_ALREADY_EXISTS": "CATALOG_ALREADY_EXISTS",
    "SCHEMA_ALREADY_EXISTS": "SCHEMA_ALREADY_EXISTS",
    "TABLE_ALREADY_EXISTS": "TABLE_OR_VIEW_ALREADY_EXISTS",
    "PERMISSION_DENIED": "INSUFFICIENT_PERMISSIONS",
    "PRINCIPAL_DOES_NOT_EXIST": "PRINCIPAL_NOT_FOUND",
    "INVALID_STATE": "SCHEMA_NOT_EMPTY",
}
# By the class of DuckDB's error and a text in it; the first that fits counts.
_DUCKDB = (
    ("BinderException", "not found|Could not find key|does not have a column", "UNRESOLVED_COLUMN"),
    ("BinderException", "", "DATATYPE_MISMATCH"),
    ("ConversionException", "out of range", "ARITHMETIC_OVERFLOW"),
    ("ConversionException", "", "CAST_INVALID_INPUT"),
    ("OutOfRangeException", "", "ARITHMETIC_OVERFLOW"),
)


class SqlError(TracelakeError):
    """A statement that fails.

    Attributes:
        condition: the error condition, as `TABLE_OR_VIEW_NOT_FOUND`.
        sqlstate: five characters.
    """

    def __init__(self, condition: str, message: str) -> None:
        self.condition = condition
        self.sqlstate = _STATES.get(condition.partition(".")[0], "XXKSS")
        super().__init__(f"[{condition}] {message} SQLSTATE: {self.sqlstate}")


def unimitated(construct: str) -> SqlError:
    """Return the error of what Databricks does and the mocked workspace does not."""
    return SqlError("UNSUPPORTED_FEATURE", f"The mocked workspace does not imitate {construct}.")


def of_api(error: ApiError) -> SqlError:
    """Return what the REST API refuses, as SQL says it."""
    condition = _CONDITIONS.get(str(error.error_code), str(error.error_code))
    return SqlError(condition, f"Insufficient privileges: {error}" if error.status == 403 else str(error))


def of_duckdb(error: Exception) -> SqlError:
    """Return what DuckDB says, as Databricks says it as far as that is known."""
    text = redact(str(error)).strip()
    # What the functions of this workspace raise by themselves.
    if own := re.search(r"\[([A-Z_]+)\] (.*)", text):
        return SqlError(own[1], own[2])
    if column := re.search(r'Referenced column "(.+?)" not found', text):
        return SqlError(
            "UNRESOLVED_COLUMN.WITH_SUGGESTION",
            f"A column, variable, or function parameter with name `{column[1]}` cannot be resolved.",
        )
    summary = text.partition("\n")[0]
    for kind, pattern, condition in _DUCKDB:
        if type(error).__name__ == kind and re.search(pattern, text):
            return SqlError(condition, summary)
    return SqlError("UNSUPPORTED_FEATURE", f"The mocked workspace cannot run the statement: {summary}")
