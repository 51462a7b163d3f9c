"""What is shown in a terminal of which only one screen is seen."""

from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.segment import Segment
from rich.text import Text


class Window:
    """The first of several tellings of the same that fits on the screen.

    Where none does, the last is cut, and the last line says how much of it is missing.

    Args:
        tellings: The fullest first.
        instead: What shows all of it.
    """

    def __init__(self, tellings: Sequence[RenderableType], *, instead: str) -> None:
        self._tellings = tellings
        self._instead = instead

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        height = console.size.height
        lines: list[list[Segment]] = []
        for telling in self._tellings:
            lines = console.render_lines(telling, options.update(height=None), pad=False)
            if len(lines) <= height:
                break
        else:
            missing = len(lines) - height + 1
            note = Text(f"{missing} more lines: make the window larger, or {self._instead}", "bold")
            lines[height - 1 :] = console.render_lines(Group(note), options, pad=False)[:1]
        for place, line in enumerate(lines):
            if place:
                yield Segment.line()
            yield from line
