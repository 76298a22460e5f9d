"""Cases of W3C Trace Context (levels 1 and 2) and W3C Baggage, each with the rule it comes from."""

from __future__ import annotations

import string
from collections.abc import Callable
from functools import partial
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.trace import SpanContext, TraceFlags

from tracelake.errors import PropagationError
from tracelake.tracing.w3c import (
    MAX_BAGGAGE_BYTES,
    MAX_BAGGAGE_MEMBERS,
    MAX_TRACESTATE_CHARS,
    format_baggage,
    format_traceparent,
    parse_baggage,
    parse_traceparent,
    parse_tracestate,
    read_headers,
)

TRACE = "12345678901234567890123456789012"
SPAN = "1234567890123456"
VALID = f"00-{TRACE}-{SPAN}-01"

GOOD_TRACEPARENTS = [
    ("version 00", VALID, 1),
    ("not sampled", f"00-{TRACE}-{SPAN}-00", 0),
    ("level 2: random-trace-id is kept", f"00-{TRACE}-{SPAN}-02", 2),
    ("level 2: both flags are kept", f"00-{TRACE}-{SPAN}-03", 3),
    ("reserved flags are set to zero", f"00-{TRACE}-{SPAN}-ff", 3),
    ("a later version of the same form", f"cc-{TRACE}-{SPAN}-01", 1),
    ("a later version with more fields", f"cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like", 1),
    ("a later version with an empty field", f"fe-{TRACE}-{SPAN}-01-", 1),
    ("a space in front", f" {VALID}", 1),
    ("a tab in front", f"\t{VALID}", 1),
    ("a space behind", f"{VALID} ", 1),
    ("a tab behind", f"{VALID}\t", 1),
    ("whitespace around", f"\t {VALID} \t", 1),
]

BAD_TRACEPARENTS = [
    ("empty", [""]),
    ("only whitespace", [" \t"]),
    ("sent twice", [f"00-{TRACE[:-1]}1-{SPAN}-01", VALID]),
    ("sent twice alike", [VALID, VALID]),
    ("sent twice, joined by a server", [f"{VALID},{VALID}"]),
    ("version 00 with a character more", [f"{VALID}."]),
    ("version 00 with a dash more", [f"{VALID}-"]),
    ("version 00 with a field more", [f"{VALID}-what-the-future-will-be-like"]),
    ("a later version without a dash before its next field", [f"cc-{TRACE}-{SPAN}-01.what-the-future-will-be-like"]),
    ("a later version with a digit more", [f"cc-{TRACE}-{SPAN}-012"]),
    ("a later version, too short", [f"cc-{TRACE}-{SPAN}-0"]),
    ("a later version, prohibitively long", [f"cc-{TRACE}-{SPAN}-01-" + "x" * 500]),
    ("version ff", [f"ff-{TRACE}-{SPAN}-01"]),
    ("version ff with more fields", [f"ff-{TRACE}-{SPAN}-01-more"]),
    ("a character in the version, first", [f".0-{TRACE}-{SPAN}-01"]),
    ("a character in the version, second", [f"0.-{TRACE}-{SPAN}-01"]),
    ("version in upper case", [f"CC-{TRACE}-{SPAN}-01"]),
    ("version of 3 digits", [f"000-{TRACE}-{SPAN}-01"]),
    ("version of 4 digits", [f"0000-{TRACE}-{SPAN}-01"]),
    ("version of 1 digit", [f"0-{TRACE}-{SPAN}-01"]),
    ("no version", [f"{TRACE}-{SPAN}-01"]),
    ("trace id of zeros", [f"00-{'0' * 32}-{SPAN}-01"]),
    ("a character in the trace id, first", [f"00-.{TRACE[1:]}-{SPAN}-01"]),
    ("a character in the trace id, last", [f"00-{TRACE[:-1]}.-{SPAN}-01"]),
    ("trace id in upper case", [f"00-{'AB' * 16}-{SPAN}-01"]),
    ("trace id in other digits", ["00-" + "\u0661" * 32 + f"-{SPAN}-01"]),
    ("trace id of 33 digits", [f"00-{TRACE}3-{SPAN}-01"]),
    ("trace id of 31 digits", [f"00-{TRACE[:-1]}-{SPAN}-01"]),
    ("parent id of zeros", [f"00-{TRACE}-{'0' * 16}-01"]),
    ("a character in the parent id, first", [f"00-{TRACE}-.{SPAN[1:]}-01"]),
    ("a character in the parent id, last", [f"00-{TRACE}-{SPAN[:-1]}.-01"]),
    ("parent id in upper case", [f"00-{TRACE}-{'AB' * 8}-01"]),
    ("parent id of 17 digits", [f"00-{TRACE}-{SPAN}7-01"]),
    ("parent id of 15 digits", [f"00-{TRACE}-{SPAN[:-1]}-01"]),
    ("a character in the flags, first", [f"00-{TRACE}-{SPAN}-.0"]),
    ("a character in the flags, second", [f"00-{TRACE}-{SPAN}-0."]),
    ("flags in upper case", [f"00-{TRACE}-{SPAN}-0A"]),
    ("flags of 3 digits", [f"00-{TRACE}-{SPAN}-001"]),
    ("flags of 1 digit", [f"00-{TRACE}-{SPAN}-1"]),
    ("no flags", [f"00-{TRACE}-{SPAN}"]),
    ("whitespace inside", [f"00-{TRACE} -{SPAN}-01"]),
    ("other separators", [VALID.replace("-", "_")]),
    ("a line break behind", [f"{VALID}\n"]),
    ("a line break behind a later version", [f"cc-{TRACE}-{SPAN}-01-x\n"]),
]

KEY_CHARS = string.ascii_lowercase + string.digits + "_-*/"
VALUE_CHARS = "".join(chr(c) for c in range(0x20, 0x7F) if chr(c) not in ",=")
MEMBERS_32 = [f"bar{n:02}={n:02}" for n in range(1, 33)]

GOOD_TRACESTATES = [
    ("no header", [], {}),
    ("one member", ["foo=1"], {"foo": "1"}),
    ("two members", ["foo=1,bar=2"], {"foo": "1", "bar": "2"}),
    (
        "headers are combined in order",
        ["foo=1,bar=2", "rojo=1,congo=2", "baz=3"],
        ["foo", "bar", "rojo", "congo", "baz"],
    ),
    ("an empty header", [""], {}),
    ("an empty header before", ["", "foo=1"], {"foo": "1"}),
    ("an empty header behind", ["foo=1", ""], {"foo": "1"}),
    ("empty members", [",foo=1,, ,\t,bar=2,"], {"foo": "1", "bar": "2"}),
    ("a repeated member", ["foo=1,foo=1"], {"foo": "1"}),
    ("of a repeated key the first counts", ["foo=1,foo=2"], {"foo": "1"}),
    ("of a key repeated in another header too", ["foo=1", "bar=3", "foo=2"], {"foo": "1", "bar": "3"}),
    ("every character of a key", [f"{KEY_CHARS}=1"], {KEY_CHARS: "1"}),
    ("a key with a tenant", [f"{KEY_CHARS}@a-z0-9_-*/=1"], {f"{KEY_CHARS}@a-z0-9_-*/": "1"}),
    ("every character of a value", [f"foo={VALUE_CHARS}"], {"foo": VALUE_CHARS}),
    ("whitespace around members", ["foo=1 \t , \t bar=2, \t baz=3"], {"foo": "1", "bar": "2", "baz": "3"}),
    ("tabs around members", ["foo=1\t \t,\t \tbar=2,\t \tbaz=3"], {"foo": "1", "bar": "2", "baz": "3"}),
    ("whitespace around all", ["\t foo=1 \t"], {"foo": "1"}),
    ("spaces that lead a value belong to it", ["foo=  1 "], {"foo": "  1"}),
    ("32 members", [",".join(MEMBERS_32)], dict(member.split("=") for member in MEMBERS_32)),
    ("32 members in two headers", [",".join(MEMBERS_32[:9]), ",".join(MEMBERS_32[9:])], 32),
    ("a key of 256 characters", ["foo=1", "z" * 256 + "=1"], {"foo": "1", "z" * 256: "1"}),
    ("a value of 256 characters", ["foo=" + "v" * 256], {"foo": "v" * 256}),
    ("level 1: a tenant of 241 and a system of 14", ["t" * 241 + "@" + "v" * 14 + "=1"], 1),
    ("level 2: a tenant of 242", ["foo=1", "t" * 242 + "@v=1"], {"foo": "1", "t" * 242 + "@v": "1"}),
    ("level 2: a system of 15", ["t@" + "v" * 15 + "=1"], {"t@" + "v" * 15: "1"}),
    ("level 2: no system", ["foo@=1,bar=2"], {"foo@": "1", "bar": "2"}),
    ("level 2: two signs", ["foo@@bar=1,bar=2"], {"foo@@bar": "1", "bar": "2"}),
    ("level 2: two systems", ["foo@bar@baz=1,bar=2"], {"foo@bar@baz": "1", "bar": "2"}),
    ("level 2: a digit first", ["1foo=1"], {"1foo": "1"}),
    ("more than the 512 characters that have to be carried", ["a=" + "v" * 250, "b=" + "v" * 250, "c=" + "v" * 250], 3),
]

BAD_TRACESTATES = [
    ("a space behind the key", ["foo =1"]),
    ("a key in upper case", ["FOO=1"]),
    ("a dot in a key", ["foo.bar=1"]),
    ("an underscore first", ["_foo=1"]),
    ("an at sign first", ["@foo=1,bar=2"]),
    ("no key", ["=1"]),
    ("no value", ["foo=,bar=3"]),
    ("neither key nor value", ["foo"]),
    ("a value of spaces", ["foo= ,bar=1"]),
    ("two equals signs", ["foo=bar=baz"]),
    ("a tab in a value", ["foo=a\tb"]),
    ("a line break in a value", ["foo=a\nb"]),
    ("a line break behind", ["foo=1\n"]),
    ("a value that is not ASCII", ["foo=\u00e9"]),
    ("a key of 257 characters", ["foo=1", "z" * 257 + "=1"]),
    ("a value of 257 characters", ["foo=" + "v" * 257]),
    ("33 members", [",".join(MEMBERS_32), "bar33=33"]),
    ("33 members with one key", [",".join(["foo=1"] * 33)]),
]


def by_rule(cases: list[tuple]) -> dict:
    return {"argvalues": [case[1:] for case in cases], "ids": [case[0] for case in cases]}


@pytest.mark.parametrize(("value", "flags"), **by_rule(GOOD_TRACEPARENTS))
def test_traceparent_is_read(value: str, flags: int) -> None:
    """What the specification allows continues the trace."""
    context = parse_traceparent([value])
    assert (f"{context.trace_id:032x}", f"{context.span_id:016x}", context.trace_flags) == (TRACE, SPAN, flags)
    assert context.is_remote
    assert format_traceparent(context) == f"00-{TRACE}-{SPAN}-{flags:02x}"


@pytest.mark.parametrize(("values",), **by_rule(BAD_TRACEPARENTS))
def test_traceparent_is_refused(values: list[str]) -> None:
    """What the specification forbids is an error with both halves of a message."""
    with pytest.raises(PropagationError, match=r"traceparent header has .*\(W3C Trace Context\)\. Correct the caller"):
        parse_traceparent(values)


@pytest.mark.parametrize(("values", "expected"), **by_rule(GOOD_TRACESTATES))
def test_tracestate_is_read(values: list[str], expected: object) -> None:
    """Members keep their order and are sent on as they came."""
    state = parse_tracestate(values)
    if isinstance(expected, int):
        assert len(state) == expected
    elif isinstance(expected, list):
        assert list(state) == expected
    else:
        assert dict(state) == expected
    assert state.to_header() == ",".join(f"{key}={value}" for key, value in state.items())


@pytest.mark.parametrize(("values",), **by_rule(BAD_TRACESTATES))
def test_tracestate_is_refused(values: list[str]) -> None:
    """One malformed member discards all of them."""
    with pytest.raises(PropagationError, match=r"tracestate header has .*\(W3C Trace Context\)\. Correct the caller"):
        parse_tracestate(values)


def test_oversized_tracestate_loses_large_members_from_the_end() -> None:
    """Whole members of more than 128 characters go first, the last of them first; small ones stay."""
    large = [f"k{n:02}=" + "v" * 256 for n in range(31)]
    state = parse_tracestate([",".join([*large, "small=1"])])
    assert len(state.to_header()) <= MAX_TRACESTATE_CHARS
    assert list(state) == [f"k{n:02}" for n in range(len(state) - 1)] + ["small"]
    assert len(parse_tracestate([",".join([*large, "small=1"])]).to_header()) + 261 > MAX_TRACESTATE_CHARS


def test_level_2_trace_state_can_be_changed_by_opentelemetry() -> None:
    """The API of ``TraceState`` works on it; only that API's own check is of level 1."""
    state = parse_tracestate(["foo@@bar=1,bar=2"])
    assert state.get("foo@@bar") == "1"
    assert state.add("vendor", "3").to_header().startswith("vendor=3")


BAGGAGE_CASES = [
    ("one member", ["SomeKey=SomeValue"], {"SomeKey": "SomeValue"}),
    ("properties are no part of the value", ["a=1;p,b=2;k=v;q"], {"a": "1", "b": "2"}),
    ("whitespace everywhere", ["a \t = \t 1 \t ; \t p \t , \t b \t = \t 2 \t ; \t k \t = \t v"], {"a": "1", "b": "2"}),
    ("headers are combined", ["userId=alice", "node=DF%2028,production=false"], ["userId", "node", "production"]),
    ("equals signs in a value", ["a=b=c"], {"a": "b=c"}),
    ("percent-encoding", ["node=DF%2028,name=Am%C3%A9lie"], {"node": "DF 28", "name": "Am\u00e9lie"}),
    ("what is not UTF-8 becomes U+FFFD", ["a=%ff"], {"a": "\ufffd"}),
    ("a plus sign is a plus sign", ["a=1+1"], {"a": "1+1"}),
    ("an empty value", ["a="], {"a": ""}),
    ("empty members", [",a=1,, ,b=2,"], {"a": "1", "b": "2"}),
    ("of a repeated key the last counts", ["a=1,a=2"], {"a": "2"}),
    ("encoded whitespace belongs to the value", ["a=%20%09"], {"a": " \t"}),
]

BAD_BAGGAGE = [
    ("no equals sign", "nonsense"),
    ("no key", "=1"),
    ("a space in a key", "a b=1"),
    ("a quote in a value", 'a="1"'),
    ("a backslash in a value", "a=\\"),
    ("a space in a value", "a=1 2"),
    ("a value that is not ASCII", "a=\u00e9"),
    ("a line break", "a=1\n"),
    ("a property without a key", "a=1;;b"),
]


@pytest.mark.parametrize(("values", "expected"), **by_rule(BAGGAGE_CASES))
def test_baggage_is_read(values: list[str], expected: object) -> None:
    """Well-formed members are read, decoded; strictness changes nothing about them."""
    entries = parse_baggage(values, strict=True)
    assert (list(entries) if isinstance(expected, list) else entries) == expected


@pytest.mark.parametrize(("member",), **by_rule(BAD_BAGGAGE))
def test_malformed_baggage_member_is_skipped_or_refused(member: str) -> None:
    """The other members are kept; strict reading raises."""
    assert parse_baggage([f"x=1,{member},y=2"]) == {"x": "1", "y": "2"}
    with pytest.raises(PropagationError, match=r"baggage header has .*\(W3C Baggage\)\. Correct the caller"):
        parse_baggage([f"x=1,{member},y=2"], strict=True)


def test_oversized_baggage_is_refused() -> None:
    """The limit holds for all headers together, commas included."""
    half = MAX_BAGGAGE_BYTES // 2
    fitting = ["a=" + "v" * (half - 2), "b=" + "v" * (half - 3)]
    assert set(parse_baggage(fitting)) == {"a", "b"}
    with pytest.raises(PropagationError, match="at most 8192 bytes, not 8193"):
        parse_baggage([fitting[0], fitting[1] + "v"])


def test_baggage_members_past_the_180th_are_skipped_or_refused() -> None:
    """The grammar ends there."""
    header = [",".join(f"k{n}={n}" for n in range(MAX_BAGGAGE_MEMBERS + 1))]
    assert list(parse_baggage(header)) == [f"k{n}" for n in range(MAX_BAGGAGE_MEMBERS)]
    with pytest.raises(PropagationError, match="at most 180 members"):
        parse_baggage(header, strict=True)


def test_format_baggage_leaves_out_what_does_not_fit() -> None:
    """Members are whole or not there."""
    assert format_baggage({}) == ""
    assert format_baggage({"": 1, "a": 2}) == "a=2"
    assert format_baggage({"a": "x" * MAX_BAGGAGE_BYTES, "b": 1}) == "b=1"
    assert len(format_baggage({f"k{n}": n for n in range(500)}).split(",")) == MAX_BAGGAGE_MEMBERS


def test_format_baggage_encodes_what_the_specification_wants_encoded() -> None:
    """Percent, separators, quotes, whitespace and non-ASCII characters; also the plus sign, which some misread."""
    value = "\t \"';asdf!@#$%^&*(),\\+\u00e9"
    assert format_baggage({"SomeKey": value}) == "SomeKey=%09%20%22'%3Basdf!@#$%25^&*()%2C%5C%2B%C3%A9"
    assert parse_baggage(["SomeKey=" + quote(value, safe="")]) == {"SomeKey": value}


@given(st.dictionaries(st.text(min_size=1, max_size=8), st.text(max_size=8), max_size=20))
def test_baggage_survives_the_round_trip(entries: dict[str, str]) -> None:
    """Any text that UTF-8 can hold comes back, as key and as value."""
    expected = {k.encode(errors="replace").decode(): v.encode(errors="replace").decode() for k, v in entries.items()}
    assert parse_baggage([format_baggage(entries)], strict=True) == expected


@given(
    st.integers(1, 2**128 - 1),
    st.integers(1, 2**64 - 1),
    st.integers(0, 3),
)
def test_traceparent_survives_the_round_trip(trace_id: int, span_id: int, flags: int) -> None:
    """Every valid span context comes back, as a remote one."""
    context = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags))
    assert parse_traceparent([format_traceparent(context)]) == context


@given(st.lists(st.one_of(st.text(), st.text(alphabet="0123456789abcdef-,=;@ \t\n")), max_size=4))
def test_parsers_raise_nothing_but_their_error(values: list[str]) -> None:
    """Whatever comes in, a caller has one error to catch, and its message is one line of ASCII."""
    for parse in (parse_traceparent, parse_tracestate, parse_baggage, partial(parse_baggage, strict=True)):
        message = refusal(parse, values)
        assert message.isascii()
        assert message.isprintable()


def refusal(parse: Callable[[list[str]], object], values: list[str]) -> str:
    try:
        parse(values)
    except PropagationError as error:
        return str(error)
    return ""


class MultiDict:
    """A class with ``getlist``, whose ``items()`` gives the first of several values, as in Werkzeug."""

    def items(self) -> list[tuple[str, str]]:
        return [("Traceparent", "a"), ("TraceState", "b=1")]

    def getlist(self, name: str) -> list[str]:
        return {"Traceparent": ["a", "b"], "TraceState": ["b=1"]}[name]


@pytest.mark.parametrize(
    ("headers", "traceparent", "tracestate"),
    [
        ({}, [], []),
        ({"traceparent": "a", "tracestate": "b=1"}, ["a"], ["b=1"]),
        ({"TRACEPARENT": "a", "TrAcEsTaTe": "b=1"}, ["a"], ["b=1"]),
        ({"traceparent": "a", "Traceparent": "b"}, ["a", "b"], []),
        ({"traceparent": ["a", "b"], "tracestate": ("b=1", b"c=2")}, ["a", "b"], ["b=1", "c=2"]),
        ({"traceparent": None, "tracestate": 5}, [], ["5"]),
        ({"trace-parent": "a", "trace.parent": "a", "trace-state": "b"}, [], []),
        ([("Traceparent", "a"), ("tracestate", "b=1"), ("tracestate", "c=2")], ["a"], ["b=1", "c=2"]),
        ([(b"traceparent", b"a"), (b"tracestate", b"\xff")], ["a"], ["\xff"]),
        ({"HTTP_TRACEPARENT": "a", "HTTP_TRACESTATE": "b=1"}, ["a"], ["b=1"]),
        ({"REQUEST_METHOD": "GET", "HTTP_TRACEPARENT": "a", "TRACEPARENT": "process"}, ["a"], []),
        (MultiDict(), ["a", "b"], ["b=1"]),
    ],
)
def test_headers_are_read_from_any_carrier(headers: object, traceparent: list[str], tracestate: list[str]) -> None:
    """Names in any case, one value or several, text or bytes."""
    found = read_headers(headers)  # type: ignore[arg-type]
    assert (found["traceparent"], found["tracestate"], found["baggage"]) == (traceparent, tracestate, [])


@pytest.mark.parametrize("headers", [None, 5, "traceparent", [1, 2], [("a", "b", "c")], object()])
def test_unreadable_carrier_is_refused(headers: object) -> None:
    """The message says what was passed and what to pass."""
    with pytest.raises(PropagationError, match=rf"a {type(headers).__name__}, cannot be read: \w+\. Pass a mapping"):
        read_headers(headers)  # type: ignore[arg-type]
