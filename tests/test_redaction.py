"""What leaves tracelake holds no secret."""

from __future__ import annotations

import pytest

from tracelake.redaction import one_line, redact


@pytest.mark.parametrize(
    "text",
    [
        "GET https://user:hunter2222@host/path failed",
        "GET https://hunter2222@host/path failed",
        "https://account.blob.core.windows.net/c?sv=2020&sig=hunter2222&se=1",
        "x-amz-security-token: hunter2222",
        "Authorization: Bearer hunter2222",
        "authorization='Basic hunter2222'",
        "Bearer hunter2222",
        '{"client_secret": "hunter2222", "scope": "all"}',
        "aws_secret_access_key=hunter2222",
        "AccountKey=hunter2222;EndpointSuffix=core",
        "password hunter2222 was refused",
    ],
)
def test_secret_in_a_message_is_blanked(text: str) -> None:
    """Whatever shape a library's message gives it; the rest of the message stays."""
    shown = redact(text)
    assert "hunter2222" not in shown
    assert "***" in shown


def test_values_of_secret_variables_are_blanked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where nothing beside them says that they are secrets; short values would blank ordinary words."""
    monkeypatch.setenv("DATABRICKS_TOKEN", "dapi-of-nobody")
    monkeypatch.setenv("SOME_API_KEY", "true")
    assert redact("refused dapi-of-nobody, which is true") == "refused ***, which is true"


def test_ordinary_messages_stay_as_they_are() -> None:
    """Paths, URLs without access and numbers are what somebody needs to read."""
    text = "The table s3://bucket/path/of/table at /data/a@b cannot be written: 403. Try http://host:5000/?a=1"
    assert redact(text) == text


def test_one_line_is_one_line() -> None:
    """Control characters become spaces, and a text of megabytes is cut."""
    assert one_line("a\nb\x1b[31mc\x00") == "a b [31mc "
    assert len(one_line("x" * 10_000, limit=100)) == 100
