"""Tables that stay readable in a narrow terminal, and the part of them that fits on one screen."""

from collections.abc import Collection, Sequence
from copy import copy
from dataclasses import replace
from datetime import datetime
from typing import cast

from rich.box import HEAVY_HEAD
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.protocol import is_renderable
from rich.segment import Segment
from rich.table import Column, Table
from rich.text import Text

from dagster_tidegate.text import shown, utc

SENTENCES = {"why", "reason", "error", "meaning"}
"""Headers of columns with sentences, in which a long word may be broken."""
MAX_WORD = 40
TEXT_WIDTHS = (24, 16, 12, 10)
"""Minimum widths of a column of text: the first that fits is used."""


def text(value: object, style: str = "") -> Text:
    """Return a value as a cell, with control characters escaped and no markup interpreted."""
    return Text("" if value is None else shown(str(value)), style)


class FittingTable(Table):
    """A table that breaks words only as the last resort.

    Where the terminal is too narrow, it drops the columns in `less`, then narrows the columns of
    text, then the widest column. Leftover width goes to the columns that need least.
    """

    def __init__(
        self, title: str, *columns: str, less: Collection[str] = (), short: bool = False
    ) -> None:
        super().__init__(title=title, title_justify="left", box=None if short else HEAVY_HEAD)
        for column in columns:
            self.add_column(column, overflow="ellipsis" if short else "fold", no_wrap=short)
        self._less = tuple(less)

    def add_row(self, *cells: object) -> None:  # type: ignore[override] -- takes anything
        """Add a row. Texts are escaped and times are in UTC; None is an empty cell."""
        super().add_row(*map(_cell, cells))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        fitting = copy(self)
        fitting.columns = self._fitted(console, options)
        yield from Table.__rich_console__(fitting, console, options)

    def _fitted(self, console: Console, options: ConsoleOptions) -> list[Column]:
        shown = [(each, _measure(console, options, each)) for each in self.columns]
        for header in self._less:
            if self._spare(options, _minimum_widths(shown, TEXT_WIDTHS[0])) >= 0:
                break
            shown = [(each, width) for each, width in shown if each.header != header]
        widths = []
        for text_width in TEXT_WIDTHS:
            widths = _minimum_widths(shown, text_width)
            if self._spare(options, widths) >= 0:
                break
        while (spare := self._spare(options, widths)) < 0 and max(widths) > 1:
            widths[widths.index(max(widths))] -= 1
        missing = [full.maximum - width for (_, full), width in zip(shown, widths, strict=True)]
        for place in sorted(range(len(widths)), key=missing.__getitem__):
            more = max(0, min(missing[place], spare))
            widths[place] += more
            spare -= more
        return [replace(each, width=width) for (each, _), width in zip(shown, widths, strict=True)]

    def _spare(self, options: ConsoleOptions, widths: list[int]) -> int:
        """Return how much width columns leave; negative if they do not fit."""
        around = 2 if self.box is None else 3  # a space on both sides, and a line
        return options.max_width - sum(widths) - around * len(widths) - 1


def _cell(value: object) -> RenderableType:
    if is_renderable(value) and not isinstance(value, str):
        return cast(RenderableType, value)
    return text(utc(value) if isinstance(value, datetime) else value)


def _measure(console: Console, options: ConsoleOptions, column: Column) -> Measurement:
    """Return the width of the longest word of a column, and of its longest line."""
    cells = [Measurement.get(console, options, each) for each in (column.header, *column.cells)]
    return Measurement(max(each.minimum for each in cells), max(each.maximum for each in cells))


def _minimum_widths(shown: list[tuple[Column, Measurement]], text_width: int) -> list[int]:
    return [
        max(min(line, text_width), 0 if column.header in SENTENCES else min(word, MAX_WORD))
        for column, (word, line) in shown
    ]


class FirstFit:
    """The first of several renderings of the same that fits on the screen.

    If none fits, the last is cut, and its last line says how much is missing.

    Args:
        renderings: The fullest first.
        instead: The command that shows everything.
    """

    def __init__(self, renderings: Sequence[RenderableType], *, instead: str) -> None:
        self._renderings = renderings
        self._instead = instead

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        height = console.size.height
        lines: list[list[Segment]] = []
        for rendering in self._renderings:
            lines = console.render_lines(rendering, options.update(height=None), pad=False)
            if len(lines) <= height:
                break
        else:
            missing = len(lines) - height + 1
            note = Text(f"{missing} more lines: enlarge the window or run {self._instead}", "bold")
            lines[height - 1 :] = console.render_lines(Group(note), options, pad=False)[:1]
        for place, line in enumerate(lines):
            if place:
                yield Segment.line()
            yield from line
