"""JSON arrays read piece by piece: the same as read whole, or refused."""

import io
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.competitions.formats.json_array import elements

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def read(content: bytes, piece: int = 7) -> list[Any]:
    return list(elements(io.BytesIO(content), piece))


@settings(max_examples=150, deadline=None)
@given(
    values=st.lists(VALUES, max_size=6),
    piece=st.integers(1, 40),
    indent=st.sampled_from([None, 1]),
    ascii_only=st.booleans(),
)
def test_pieces_of_any_size_give_what_the_whole_gives(
    values: list[Any], piece: int, indent: int | None, ascii_only: bool
) -> None:
    text = json.dumps(values, indent=indent, ensure_ascii=ascii_only)
    assert read(text.encode("utf-8", "surrogatepass"), piece) == values


@settings(max_examples=300, deadline=None)
@given(content=st.binary(max_size=40) | st.text('[]{},:"0123456789.eE-+ntruefalsNI \n', max_size=25).map(str.encode))
def test_any_bytes_are_read_as_json_reads_them_or_refused(content: bytes) -> None:
    try:
        whole = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError):
        whole = None
    if isinstance(whole, list):
        assert str(read(content)) == str(whole)  # as text, for NaN
    else:
        with pytest.raises(ValueError):
            read(content)


def test_refusals() -> None:
    for content, expected in (
        (b"", "does not start"), (b'{"a": 1}', "does not start"), (b"[1 2]", "where , or ]"), (b"[1, 2", "where , or ]"),
        (b"[1] 2", "follows"), (b"[" * 100_000, "deep|Expecting"), (b'["\xff"]', "utf-8"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=expected):
            read(content)
