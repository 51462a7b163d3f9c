"""Tables that stay readable in a narrow terminal."""

from collections.abc import Collection
from copy import copy
from dataclasses import replace

from rich.box import HEAVY_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Column, Table

SENTENCES = {"why", "why not", "reason", "error", "meaning"}
"""Headers of columns of sentences, of which a word may be broken."""
MAX_WORD = 40
TEXT_WIDTHS = (24, 16, 12, 10)
"""How wide a column of text is at least: the first that there is room for."""


class FittingTable(Table):
    """A table that has no word broken while there is another way.

    Where it is too narrow for all columns, those of less weight are left out. Then the columns of
    text get narrower, and then the widest of all. What is left of the room goes first to the column
    that lacks least.

    Args:
        title: What is above it.
        columns: Headers of the columns.
        less: Headers of those of less weight, those that go first before the others.
        short: Whether each row has one line, where text is cut, and nothing is around the cells.
    """

    def __init__(
        self, title: str, *columns: str, less: Collection[str] = (), short: bool = False
    ) -> None:
        super().__init__(title=title, title_justify="left", box=None if short else HEAVY_HEAD)
        for column in columns:
            self.add_column(column, overflow="ellipsis" if short else "fold", no_wrap=short)
        self._less = tuple(less)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        fitting = copy(self)
        fitting.columns = self._fitted(console, options)
        yield from Table.__rich_console__(fitting, console, options)

    def _fitted(self, console: Console, options: ConsoleOptions) -> list[Column]:
        shown = [(each, _width(console, options, each)) for each in self.columns]
        for header in self._less:
            if self._room(options, _least(shown, TEXT_WIDTHS[0])) >= 0:
                break
            shown = [(each, width) for each, width in shown if each.header != header]
        found = []
        for text in TEXT_WIDTHS:
            found = _least(shown, text)
            if self._room(options, found) >= 0:
                break
        while (spare := self._room(options, found)) < 0 and max(found) > 1:
            found[found.index(max(found))] -= 1
        missing = [width.maximum - least for (_, width), least in zip(shown, found, strict=True)]
        for place in sorted(range(len(found)), key=missing.__getitem__):
            more = max(0, min(missing[place], spare))
            found[place] += more
            spare -= more
        return [replace(each, width=width) for (each, _), width in zip(shown, found, strict=True)]

    def _room(self, options: ConsoleOptions, widths: list[int]) -> int:
        """How much room columns leave; less than 0 where they have none."""
        around = 2 if self.box is None else 3  # a space on both sides, and a line
        return options.max_width - sum(widths) - around * len(widths) - 1


def _width(console: Console, options: ConsoleOptions, column: Column) -> Measurement:
    """The longest word of a column, and how wide it wants to be."""
    found = [Measurement.get(console, options, each) for each in (column.header, *column.cells)]
    return Measurement(max(each.minimum for each in found), max(each.maximum for each in found))


def _least(shown: list[tuple[Column, Measurement]], text: int) -> list[int]:
    """How wide each column is at least."""
    return [
        max(min(most, text), 0 if column.header in SENTENCES else min(word, MAX_WORD))
        for column, (word, most) in shown
    ]
