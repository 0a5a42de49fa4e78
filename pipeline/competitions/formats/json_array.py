"""A JSON array, element by element: a file of a million records never sits in memory whole."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

PIECE = 1 << 20
"""Bytes read at a time."""

_SPACE = re.compile(r"[ \t\n\r]*")


def elements(handle: BinaryIO, piece: int = PIECE) -> Iterator[Any]:
    """The elements of the one array that a UTF-8 file holds.

    Raises:
        ValueError: the file is not JSON, or holds something else than an array; what came before was right.
    """
    source = _Source(handle, piece)
    if source.next() != "[":
        raise ValueError("it does not start with [")
    source.place += 1
    if source.next() == "]":
        source.place += 1
    else:
        while True:
            yield source.value()
            mark = source.next()
            source.place += 1
            if mark == "]":
                break
            if mark != ",":
                raise ValueError(f"there is {mark or 'the end'!r} where , or ] should be")
    if source.next():
        raise ValueError("something follows the array")


class _Source:
    """Text from `place` on; more is read when it does not reach."""

    def __init__(self, handle: BinaryIO, piece: int) -> None:
        self.handle, self.piece = handle, piece
        self.text, self.place, self.ended = "", 0, False
        self.decoder = json.JSONDecoder()
        self.utf8 = codecs.getincrementaldecoder("utf-8")()

    def more(self, size: int) -> None:
        content = self.handle.read(size)
        self.ended = not content
        self.text = self.text[self.place :] + self.utf8.decode(content, final=self.ended)
        self.place = 0

    def next(self) -> str:
        """The next character that is no white space, which then stands at `place`; empty at the end."""
        while True:
            space = _SPACE.match(self.text, self.place)
            assert space is not None
            self.place = space.end()
            if self.place < len(self.text) or self.ended:
                return self.text[self.place : self.place + 1]
            self.more(self.piece)

    def value(self) -> Any:
        self.next()
        size = self.piece
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.place)
            except RecursionError as error:
                raise ValueError("it is nested too deeply") from error
            except ValueError:
                if self.ended:
                    raise
                end = len(self.text)
            after = _SPACE.match(self.text, end)
            # a number that a piece cuts in two is one up to there: 1. of 1.5
            if self.ended or (after is not None and self.text[after.end() : after.end() + 1] in (",", "]")):
                self.place = end
                return value
            self.more(size)
            size *= 2
