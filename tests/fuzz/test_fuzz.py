"""Whatever reads foreign bytes, given bytes that are almost right, and bytes that are not."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzz.corpus import paths, seeds
from tests.fuzz.targets import TARGETS, shown_as_one_line

# What parsers stumble over.
TOKENS = (
    *(b"\0", b"\n", b"\r\n", b"\x1b[31m", b"\xff", b"\xc2\x9b", b"\xe2\x80\xa8", b"\xe2\x80\xae", b"\xed\xb2\x80"),
    *(b'"', b"'", b"`", b"\\", b",", b";", b"=", b":", b"//", b"@", b"#", b"?", b"%", b"%00", b"..", b"{", b"[", b"]"),
    *(b"-1", b"0", b"9223372036854775808", b"1e999", b"9" * 5000, b"NaN", b"null", b"\xf0\x9f\x98\x80", b"a" * 300),
    *(b'{"$map":' * 40, b"[" * 3000, b"\x80" * 11, b"\x0a\xff\xff\xff\xff\x7f"),
)


@st.composite
def almost(draw: st.DrawFn, kept: list[bytes]) -> bytes:
    """Return an input that is kept, changed in a few places."""
    data = draw(st.sampled_from(kept))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 20)))
        data = data[:start] + draw(st.sampled_from(TOKENS) | st.binary(max_size=8)) + data[end:]
    return data


def fuzz(target: str, examples: int, *, at_length: bool = False) -> None:
    """Try a target: always the same inputs, or others each time."""

    @settings(
        max_examples=examples,
        derandomize=not at_length,
        phases=[Phase.generate, *([Phase.shrink] if at_length else [])],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(almost(seeds(target)) | st.binary(max_size=200) | st.text(max_size=80).map(str.encode))
    def attempt(data: bytes) -> None:
        TARGETS[target](data)

    attempt()


@pytest.mark.parametrize(
    ("target", "path"),
    [pytest.param(target, path, id=f"{target}-{path.name}") for target in TARGETS for path in paths(target)],
)
def test_input_that_is_kept(target: str, path: Path) -> None:
    """Each input of the corpus: the good ones, and those that once went wrong."""
    TARGETS[target](path.read_bytes())


@pytest.mark.parametrize("target", TARGETS)
def test_a_few_inputs(target: str) -> None:
    """The same ones each time."""
    fuzz(target, 60)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("target", TARGETS)
def test_many_inputs(target: str) -> None:
    """Others each time; what fails is printed, and goes into the corpus."""
    fuzz(target, 3000, at_length=True)


@pytest.mark.parametrize("text", ["a\nb", "a\x1b[31m", "a\x9b", "a\u2028b", "a\u202eb", "a" * 10_000], ids=ascii)
def test_text_that_is_no_line_is_found(text: str) -> None:
    """The check of texts can fail."""
    with pytest.raises(AssertionError):
        shown_as_one_line(text)
