"""The settings: what each takes, and what a wrong value says."""

from __future__ import annotations

import pytest

from tracelake.errors import SettingError
from tracelake.settings import Settings, load_settings, read_settings


def test_empty_environment_gives_the_defaults() -> None:
    """Blank values count as unset."""
    assert load_settings({}) == Settings()
    assert load_settings({"TRACELAKE_SHIPPER": "  ", "TRACELAKE_BATCH_MAX_AGE": ""}) == Settings()


@pytest.mark.parametrize(
    ("text", "size"),
    [("1024", 1024), ("2KB", 2000), ("2 KiB", 2048), ("16MiB", 2**24), ("1GB", 10**9), ("1gib", 2**30)],
)
def test_bytes_have_units(text: str, size: int) -> None:
    """Thousands and powers of two, in upper and lower case."""
    assert load_settings({"TRACELAKE_SPOOL_MAX_BYTES": text}).spool_max_bytes == size


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        *(("TRACELAKE_SPOOL_MAX_BYTES", text) for text in ("1023", "-1", "x", "MB", "1.5MB", "5KMB", "1TB", "1e6")),
        *(("TRACELAKE_BATCH_MAX_AGE", text) for text in ("-1", "nan", "inf", "86401", "5s", "x")),
        ("TRACELAKE_SHIPPER", "Process"),
        ("TRACELAKE_SCHEMA_VERSION", "3"),
        ("TRACELAKE_CREATE_TABLE", "yes"),
    ],
)
def test_wrong_value_names_variable_value_and_what_to_set(variable: str, text: str) -> None:
    """The default stands for it, and the message has both halves."""
    settings, [problem] = read_settings({variable: text, "TRACELAKE_EXIT_TIMEOUT": "7"})
    assert settings == Settings(exit_timeout_s=7)
    assert problem.startswith(f"{variable}={text!r} is not usable: ")
    assert "Set it to" in problem
    assert "unset it for the default" in problem
    with pytest.raises(SettingError, match=variable):
        load_settings({variable: text})


def test_all_wrong_values_are_named_at_once() -> None:
    """Nobody wants to mend them one by one."""
    with pytest.raises(SettingError, match=r"TRACELAKE_SHIPPER=.*TRACELAKE_CREATE_TABLE="):
        load_settings({"TRACELAKE_SHIPPER": "x", "TRACELAKE_CREATE_TABLE": "x"})


def test_lists_are_separated_by_commas() -> None:
    """Blanks and empty parts do not count."""
    assert load_settings({"TRACELAKE_ACCEPT_DESTINATIONS": " ./a, ,s3://b/c ,"}).accept_destinations == (
        "./a",
        "s3://b/c",
    )
