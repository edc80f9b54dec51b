"""YAML is read as YAML 1.2's core schema says, within bounds, and every mistake has its line."""

import contextlib
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyvllm.config.yaml_source import MAX_BYTES, parse_value, parse_yaml
from tinyvllm.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        (".5", 0.5),
        ("1.", 1.0),
        ("on", "on"),
        ("yes", "yes"),
        ("No", "No"),
        ("true", True),
        ("FALSE", False),
        ("012", 12),
        ("0x1F", 31),
        ("0o17", 15),
        ("10:30", "10:30"),
        ("1_000", "1_000"),
        ("2001-01-01", "2001-01-01"),
        ("~", None),
        ("null", None),
        ("", None),
        ("'12'", "12"),
        ("!!str 12", "12"),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("12+7=", "12+7="),
        ("=", "="),
        ("[1, a, {b: 2}]", [1, "a", {"b": 2}]),
    ],
)
def test_scalars_follow_the_core_schema_of_yaml_1_2(text: str, expected: object) -> None:
    value = parse_value(text, "--set x")
    assert value == expected
    assert type(value) is type(expected)


def test_nan_is_read_as_nan() -> None:
    assert math.isnan(parse_value(".nan", "--set x"))


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**18), 10**18))
def test_every_number_that_python_prints_is_read_back(number: float) -> None:
    value = parse_value(repr(number), "--set x")
    assert value == number
    assert type(value) is type(number)


def test_a_duplicate_key_is_a_problem_that_names_both_lines_and_hides_nothing_else() -> None:
    tree = parse_yaml(b"a: 1\nb: {c: 1, c: 2}\na: 2\n", "x.yaml")
    assert [(str(p.place), p.message) for p in tree.problems] == [
        ("x.yaml:2", "b.c is given twice, first in line 2; keep one"),
        ("x.yaml:3", "a is given twice, first in line 1; keep one"),
    ]
    assert tree.data == {"a": 1, "b": {"c": 1}}


def test_every_value_knows_its_line() -> None:
    tree = parse_yaml(b"a:\n  b: 1\n  c:\n  - x\n  - y\n", "x.yaml")
    lines = {path: place.line for path, place in tree.places.items()}
    assert lines == {("a",): 1, ("a", "b"): 2, ("a", "c"): 3, ("a", "c", 0): 4, ("a", "c", 1): 5}


def test_tags_that_make_objects_are_problems_and_make_nothing() -> None:
    tree = parse_yaml(b"a: !!python/object/apply:os.system [x]\nb: !mine y\n", "x.yaml")
    assert [problem.place.line for problem in tree.problems] == [1, 2]
    assert tree.data == {"a": ["x"], "b": "y"}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "x.yaml: the file is empty"),
        (b"# only a comment\n", "x.yaml: the file is empty"),
        (b"- a\n", "x.yaml:1: the file must be a mapping (key: value), got a list"),
        (b"hello\n", "x.yaml:1: the file must be a mapping (key: value), got a single value"),
        (b"a:\n\tb: 1\n", "x.yaml:2: a tab; YAML is indented with spaces"),
        (b"a: 1\nb: \xff\n", "x.yaml:2: the file is not UTF-8 (byte 0xff)"),
        (b"a: 1\nb: \x07\n", "x.yaml:2: the character U+0007 is not allowed"),
        (b"a: 1\n---\nb: 1\n", "x.yaml:2: a second document begins"),
        (b"a: [1, 2\nb: 3\n", "x.yaml:2: expected ',' or ']'"),
        (b"a: b: c\n", "x.yaml:1: mapping values are not allowed here"),
        (b"\na: *nope\n", "x.yaml:2: found undefined alias 'nope'"),
        (b"a: &x [*x]\n", "x.yaml:1: the alias at a[0] holds itself"),
        (b"a: " + b"[" * 100_000, "x.yaml:1: nested deeper than 32"),
        (b"#" * (MAX_BYTES + 1), "x.yaml: 1,048,577 bytes"),
    ],
)
def test_what_is_no_configuration_is_refused_with_its_line(content: bytes, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(content, "x.yaml")
    assert str(caught.value).startswith(expected)


def test_aliases_that_explode_are_refused() -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    with pytest.raises(ConfigError, match="more than 20,000 keys and values, aliases expanded"):
        parse_yaml("\n".join(lines).encode(), "x.yaml")


def test_an_alias_stands_for_its_value() -> None:
    tree = parse_yaml(b"a: &a {b: 1}\nc: *a\n", "x.yaml")
    assert tree.data == {"a": {"b": 1}, "c": {"b": 1}}


def test_a_byte_order_mark_is_no_part_of_the_first_key() -> None:
    assert parse_yaml(b"\xef\xbb\xbfmodel: demo\n", "x.yaml").data == {"model": "demo"}


@pytest.mark.parametrize(
    "text",
    [
        "0x" + "f" * 100_000,
        "9" * 400,
        "-" + "9" * 400,
        "9" * 500_000,
        "0o" + "7" * 1000,
        "1e" + "9" * 1000,
        "." + "1" * 500_000,
    ],
    ids=lambda text: f"{text[:4]} of {len(text)}",
)
def test_a_number_of_any_length_is_a_problem_and_takes_no_time(text: str) -> None:
    begin = time.process_time()
    tree = parse_yaml(f"a: 1\nseed: {text}\n".encode(), "x.yaml")
    assert time.process_time() - begin < 2
    message = f"seed: '{text[:40]}' and {len(text) - 40:,} characters more cannot be read as"
    assert [str(problem.place) for problem in tree.problems] == ["x.yaml:2"]
    assert str(tree.problems[0].message).startswith(message)


@pytest.mark.parametrize("text", ['"\\ud800"', '{"\\udfff": 1}', '["a\\ud800b"]'])
def test_half_of_a_surrogate_pair_is_a_problem(text: str) -> None:
    tree = parse_yaml(f"a: {text}\n".encode(), "x.yaml")
    assert "must be text that UTF-8 can hold" in str(tree.problems[0].message)
    repr(tree.data).encode()


@given(st.binary(max_size=200) | st.text(alphabet="ab:-[]{}&*!|>'\"#%@`,? \n\t0.", max_size=60).map(str.encode))
def test_any_bytes_give_a_tree_or_a_config_error(content: bytes) -> None:
    with contextlib.suppress(ConfigError):
        parse_yaml(content, "x.yaml")
