"""Options as dataclass fields: types, choices and bounds, from text and in Python."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest

from graphshrink.ir.options import (
    Bounds,
    OptionError,
    PythonOnly,
    check_options,
    option_pairs,
    options_of,
    options_text,
    parse_options,
)


@dataclass(frozen=True)
class Some:
    """Options of every kind.

    Attributes:
        count: How many,
            over two lines.
        share: Which part.
        kind: Soft or hard.
        words: Some words.
        made: For Python alone.
    """

    count: Annotated[int, Bounds(at_least=2, at_most=9)] = 4
    share: Annotated[float, Bounds(above=0, below=1)] | None = None
    kind: Literal["soft", "hard"] = "soft"
    words: str | tuple[str, ...] = ()
    made: Annotated[Any, PythonOnly()] = None


def test_what_is_declared() -> None:
    found = {o.name: o for o in options_of(Some)}
    assert found["count"].help == "How many, over two lines."
    assert found["count"].takes == "int, at least 2 and at most 9"
    assert found["share"].takes == "float, above 0 and below 1 or None"
    assert found["kind"].choices == ("soft", "hard")
    assert found["made"].python_only
    assert options_of(int) == ()


def test_text_and_back() -> None:
    values = parse_options(Some, option_pairs("count=3,share=.5,words=[a,b],kind=hard", ""), "x")
    assert Some(**values) == Some(3, 0.5, "hard", ("a", "b"))
    assert options_text(Some(**values)) == "{count=3,share=0.5,kind=hard,words=[a,b]}"
    assert options_text(Some()) == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cuont=3", "x has no option 'cuont'; did you mean 'count'?"),
        ("count=3,count=3", "x: option 'count' is given twice"),
        ("count=three", "x: option 'count' takes int, at least 2 and at most 9, not 'three'"),
        ("count=\uff13", "numbers are finite and in plain digits"),
        ("share=inf", "numbers are finite and in plain digits"),
        ("share=1_0", "numbers are finite and in plain digits"),
        ("kind=softt", "is one of soft, hard, not 'softt'; did you mean 'soft'?"),
        ("made=3", "x has no option 'made'"),
        ("words=[a", "braces or quotes do not match"),
        ("count=3,,kind=soft", "empty entry"),
    ],
)
def test_wrong_texts(text: str, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_options(Some, option_pairs(text, text), "x")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 1}, "must be at least 2 and at most 9, not 1"),
        ({"count": 10}, "must be at least 2 and at most 9, not 10"),
        ({"count": True}, "takes int"),
        ({"count": 3.0}, "takes int"),
        ({"share": 0}, "must be above 0 and below 1, not 0"),
        ({"share": 1.0}, "must be above 0 and below 1"),
        ({"share": math.nan}, "takes finite numbers"),
        ({"share": "much"}, "takes float"),
        ({"kind": "Soft"}, "is one of soft, hard"),
        ({"words": 3}, "takes str or a list of str"),
        ({"words": ("a", 3)}, "takes str or a list of str"),
    ],
)
def test_wrong_values(values: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        check_options(Some(**values), "x")
    assert message in str(caught.value)


def test_lists_become_tuples() -> None:
    made = Some(words=["a", "b"])  # type: ignore[arg-type]
    check_options(made, "x")
    assert made.words == ("a", "b")
    assert hash(made)


def test_annotations_that_nobody_finds_are_left_alone() -> None:
    class Local: ...

    @dataclass(frozen=True)
    class Odd:
        thing: Local | None = None

    check_options(Odd(Local()), "x")
