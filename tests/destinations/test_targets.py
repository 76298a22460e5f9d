"""The grammar of targets: what each text means, and what a wrong one is answered with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tracelake import Destination, Finding, Sink, TargetError
from tracelake.destinations.base import digest, shown_target
from tracelake.destinations.delta import DeltaDestination
from tracelake.destinations.resolve import DEFAULT_TARGET
from tracelake.destinations.targets import parse_target, parse_targets, registered_schemes, split_targets


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The working directory, which is also the home directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return os.getcwd()


@pytest.mark.parametrize(
    ("target", "location"),
    [
        ("./traces", "{here}/traces"),
        ("../traces", "{parent}/traces"),
        (".", "{here}"),
        ("~/traces", "{here}/traces"),
        ("/data/traces", "/data/traces"),
        ("/data//traces/", "/data/traces"),
        ("/data/x/../traces", "/data/traces"),
        ("  /data/traces  ", "/data/traces"),
        ("/data/my traces", "/data/my traces"),
        ("/data/a,b", "/data/a,b"),
        ("file:///data/traces", "/data/traces"),
        ("file://localhost/data/traces", "/data/traces"),
        ("FILE:///data/my%20traces", "/data/my traces"),
        ("s3://bucket/path/of/table", "s3://bucket/path/of/table"),
        ("S3://bucket/table/", "s3://bucket/table"),
        ("s3a://bucket/table", "s3://bucket/table"),
        ("gs://bucket/table", "gs://bucket/table"),
        (
            "abfss://container@account.dfs.core.windows.net/table",
            "abfss://container@account.dfs.core.windows.net/table",
        ),
        (DEFAULT_TARGET, "{here}/tracelake/spans"),
    ],
)
def test_path_or_url_is_a_delta_table_there(here: str, target: str, location: str) -> None:
    """Absolute and canonical: the shipper has another working directory."""
    destination = parse_target(target)
    assert destination == DeltaDestination(location.format(here=here, parent=os.path.dirname(here)))
    assert parse_target(destination.target) == destination
    assert hash(parse_target(destination.target)) == hash(destination)
    assert str(destination) == destination.target


PATH_OR_URL = "Write './traces' or '/data/traces' for a directory, 's3://bucket/path' for an object store"


@pytest.mark.parametrize(
    ("target", "seen", "remedy"),
    [
        ("", "The target is empty.", PATH_OR_URL),
        ("   ", "The target is empty.", PATH_OR_URL),
        ("traces", "'traces' is neither a path, nor a table name, nor a URL", PATH_OR_URL),
        ("a/b", "'a/b' is neither a path", PATH_OR_URL),
        ("a.b.c.d", "a table name with too many or empty parts", PATH_OR_URL),
        ("main.obs.", "a table name with too many or empty parts", PATH_OR_URL),
        ("main..spans", "a table name with too many or empty parts", PATH_OR_URL),
        ("main. obs.spans", "neither a path, nor a table name", PATH_OR_URL),
        ("s3:/bucket/path", "neither a path, nor a table name, nor a URL", PATH_OR_URL),
        ("/data/a\nb", "holds control characters", PATH_OR_URL),
        ("/data/a\x00b", "holds control characters", PATH_OR_URL),
        ("file:///data/a%00b", "holds control characters", "Name a directory without them."),
        ("file:///data/a%20", "ends in a space", "Name a directory without them."),
        ("file://server/data", "names a host", "Write 'file:///data/traces'"),
        ("file://data", "names a host", "Write 'file:///data/traces'"),
        ("/data/a#b", "holds '#'", "Name a directory without it."),
        ("/data/a?b", "holds '?'", "Name a directory without it."),
        ("/data/a%20b", "holds '%20'", "Name a directory without it."),
        ("/data/[a]", "holds '['", "Name a directory without it."),
        ("/data/a\\b", "holds '\\\\'", "Name a directory without it."),
        ("/data/a|b", "holds '|'", "Name a directory without it."),
        ("s3://bucket", "names no table", "Write 's3://bucket/path/of/table'."),
        ("s3://bucket/", "names no table", "Write 's3://bucket/path/of/table'."),
        ("s3:///path", "names no table", "Write 's3://bucket/path/of/table'."),
        ("abfss://container@account.dfs.core.windows.net/", "names no table", "Write 'abfss://container@account"),
        ("s3://bucket/path?versionId=1", "more than a bucket and a path", "environment variables of the store"),
        ("s3://bucket/path#x", "more than a bucket and a path", "environment variables of the store"),
        ("s3://bucket:9000/path", "more than a bucket and a path", "environment variables of the store"),
        ("s3://[bucket/path", "more than a bucket and a path", "environment variables of the store"),
        ("gs://my bucket/path", "more than a bucket and a path", "Write 'gs://bucket/path/of/table'"),
        ("ftp://host/path", "something with the scheme 'ftp'", PATH_OR_URL),
        ("://x", "neither a path", PATH_OR_URL),
    ],
)
def test_malformed_target_is_answered_with_what_to_write(target: str, seen: str, remedy: str) -> None:
    """What was seen, and what to write instead, in one message."""
    with pytest.raises(TargetError) as raised:
        parse_target(target)
    assert seen in str(raised.value)
    assert remedy in str(raised.value)


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        ("ftp://localhost/spans", "the scheme 'ftp'"),
        ("databricks", "a Databricks workspace"),
        ("databricks://profile", "a Databricks workspace"),
    ],
)
def test_target_of_a_kind_that_is_not_installed(target: str, kind: str) -> None:
    """The message says what it would be, and which schemes there are."""
    with pytest.raises(TargetError) as raised:
        parse_target(target)
    assert f"names {kind}" in str(raised.value).replace("something with ", "")
    assert f"(there are: {', '.join(registered_schemes())})" in str(raised.value)
    assert PATH_OR_URL in str(raised.value)


SECRET = "wJalrXUtnFEMI/K7MDENG"


@pytest.mark.parametrize(
    "target",
    [
        f"s3://AKIA:{SECRET}@bucket/path",
        "s3://AKIA:wJalrXUtnFEMI@K7MDENG@bucket/path",
        f"s3://bucket/path?secret_access_key={SECRET}",
        f"s3://bucket/path?x={SECRET}",
        f"s3://bucket/path#{SECRET}",
        f"abfss://container:{SECRET}@account/path",
        f"gs://user:{SECRET}@bucket",
        f"ftp://user:{SECRET}@host/path",
        f"http://user:{SECRET}@host:5000",
        f"https://host/path?token={SECRET}",
        f"https://host/path#{SECRET}",
        f"http//user:{SECRET}@host",
        f"user:{SECRET}@host/path",
        f"file://user:{SECRET}@host/path",
    ],
)
def test_secret_in_a_target_is_never_shown(target: str) -> None:
    """People paste what they have; the error goes into logs."""
    with pytest.raises(TargetError) as raised:
        parse_target(target)
    for part in ("wJalrXUtnFEMI", "K7MDENG"):
        assert part not in str(raised.value)
    assert "***" in str(raised.value)


def test_shown_target_is_short() -> None:
    """An error is not made of megabytes."""
    assert len(shown_target("x" * 10_000)) < 250
    assert shown_target("s3://bucket/path") == "'s3://bucket/path'"


def test_path_objects_are_paths(here: str) -> None:
    """Whatever they look like: a relative one needs no dot, and one like a table name or a URL is a path."""
    assert parse_targets(Path("traces")) == (DeltaDestination(f"{here}/traces"),)
    assert parse_targets(Path("main.obs.spans")) == (DeltaDestination(f"{here}/main.obs.spans"),)
    assert parse_targets(Path("/data/traces")) == (DeltaDestination("/data/traces"),)
    assert parse_targets(PurePosixPath("~/traces")) == (DeltaDestination(f"{here}/~/traces"),)
    assert parse_targets(BytesPath()) == (DeltaDestination(f"{here}/traces"),)
    for path in (" /traces", "traces "):
        with pytest.raises(TargetError, match="begins or ends with a space"):
            parse_targets(Path(path))


class BytesPath(os.PathLike[bytes]):
    """A path that is not text."""

    def __fspath__(self) -> bytes:
        return b"traces"


@dataclass(frozen=True)
class Nowhere:
    """The smallest destination that there can be."""

    target: str = "nowhere://"
    identity: Any = None

    def check(self) -> list[Finding]:
        return []

    def open(self) -> Sink:
        raise NotImplementedError


def test_list_is_each_of_its_destinations_once(here: str) -> None:
    """In their order, of any kind, and from anything that can be iterated."""
    nowhere = Nowhere()
    assert isinstance(nowhere, Destination)
    table = DeltaDestination(f"{here}/a")
    assert parse_targets(["./a", Path("b"), nowhere, "./a/", table]) == (table, DeltaDestination(f"{here}/b"), nowhere)
    assert parse_targets(nowhere) == (nowhere,)
    assert parse_targets(("./a",)) == (table,)

    def generate() -> Iterator[str]:
        yield "./a"

    assert parse_targets(generate()) == (table,)  # type: ignore[arg-type]


class Unhashable(Nowhere):
    """A destination that cannot be the key of a route."""

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize("wrong", [None, 7, b"./a", object(), [7], ["./a", None], [["./a"]], Nowhere, Unhashable(), []])
def test_what_is_no_target_is_refused(wrong: Any) -> None:
    """With the error of the library, whatever it is."""
    with pytest.raises(TargetError, match=r"Write '\./traces'"):
        parse_targets(wrong)


def test_commas_separate_targets_of_the_environment() -> None:
    """And of the environment only: a path in code may have a comma."""
    assert split_targets(" ./a ,s3://b/c,, /d ,") == ["./a", "s3://b/c", "/d"]
    assert split_targets(" , ") == []


def test_file_is_no_table(tmp_path: Path) -> None:
    """Found at once, not at the first delivery."""
    (tmp_path / "file").write_text("")
    with pytest.raises(TargetError, match="is a file, and a table is a directory"):
        parse_target(str(tmp_path / "file"))


def test_relative_path_from_a_directory_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is nothing it could be relative to."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(TargetError, match=r"working directory, which is gone.*Write an absolute path"):
        parse_target("./traces")
    assert parse_target("/data/traces").target == "/data/traces"


def test_identity_has_no_secret_and_outlives_a_rotated_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made of settings that say who, not of what proves it."""
    monkeypatch.setenv("AWS_PROFILE", "prod")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://user:password@minio.example.com")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "first-secret")
    first = parse_target("s3://bucket/table")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "second-secret")
    second = parse_target("s3://bucket/table")
    assert first == second
    assert first.identity == second.identity
    assert first.identity["AWS_PROFILE"] == "prod"
    assert not any(secret in str(first.identity) for secret in ("password", "first-secret"))
    assert parse_target("/data/traces").identity == {}


def test_digest_tells_destinations_apart_and_nothing_else() -> None:
    """The same in every process and version, since other services compare it."""
    assert digest(parse_target("s3://bucket/table")) == digest(parse_target("s3a://bucket/table/"))
    assert digest(parse_target("s3://bucket/table")) != digest(parse_target("s3://bucket/other"))
    assert digest(DeltaDestination("/data/traces")) == "8a52b1a4f071ad06"


targets = st.one_of(
    st.text(),
    st.builds(
        "{}{}{}".format,
        st.sampled_from(
            ["", "/", "./", "~", "file://", "s3://", "abfss://", "gs://", "uc://", "main.", "`", "http://"]
        ),
        st.text(alphabet=st.sampled_from("ab.@:/?#%`[]\\ ~$*\u00e9\ud800\x00"), max_size=12),
        st.sampled_from(["", "/x", "@b/c", ".x", "?experiment=x", "?experiment_id=7"]),
    ),
)


@given(targets)
@example("s3://[/x")
@example("s3://b:port/x")
@example("~\x00")
@example("file:///%ff")
@example("http://a?experiment=%ff")
@example("http://a:\u0663")
def test_any_text_is_a_destination_or_a_target_error(text: str) -> None:
    """Nothing else is ever raised, and what is understood is understood again by its own name."""
    try:
        destination = parse_target(text)
    except TargetError:
        return
    assert parse_target(destination.target) == destination
    assert destination.target.isprintable()
