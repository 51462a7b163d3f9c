"""Text that people give, and how it and times are shown to them."""

import unicodedata
from collections.abc import Iterable
from datetime import datetime, timedelta
from difflib import get_close_matches

MAX_REASON = 1000
MAX_ACTOR = 256
MAX_NAME = 512
# Control, format (which turns the writing direction, or can't be seen), surrogate, and the two
# that end a line.
_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def checked(text: str, what: str, longest: int) -> str:
    """Return a text that people gave, if it may be kept.

    Args:
        text: The text.
        what: What it is, for the refusal: "reason".
        longest: How many characters it may have.

    Raises:
        ValueError: If it is empty, too long, or has a character that can't be seen.

    Example:
        >>> checked("new copy", "reason", 100)
        'new copy'
    """
    if not text.strip():
        raise ValueError(f"the {what} is empty")
    if len(text) > longest:
        raise ValueError(f"the {what} has {len(text)} characters; it may have {longest}")
    for place, character in enumerate(text):
        if unicodedata.category(character) in _HIDDEN:
            raise ValueError(
                f"the {what} has {_escaped(character)} at character {place + 1}: write it on one "
                "line, without control characters"
            )
    return text


def shown(text: str) -> str:
    r"""Return a text so that a terminal shows all of it and obeys none of it.

    Example:
        >>> shown("red \x1b[31m")
        'red \\x1b[31m'
    """
    return "".join(
        _escaped(character) if unicodedata.category(character) in _HIDDEN else character
        for character in text
    )


def utc(time: datetime) -> str:
    """Return a time (UTC) for people."""
    return f"{time:%F %T} UTC"


def length(time: timedelta) -> str:
    """Return a length of time for people.

    Example:
        >>> length(timedelta(seconds=90)), length(timedelta(minutes=12)), length(timedelta(days=3))
        ('90 s', '12 min', '3 d')
    """
    seconds = max(0, round(time.total_seconds()))
    if seconds < 120:
        return f"{seconds} s"
    if seconds < 7200:
        return f"{seconds // 60} min"
    return f"{seconds // 3600} h" if seconds < 172_800 else f"{seconds // 86_400} d"


def did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    """Return the known names that are like one that is not known; else another hint.

    Example:
        >>> did_you_mean("outraech", ["outreach", "digest"], "see 'tidegate campaigns'")
        'did you mean outreach?'
    """
    close = get_close_matches(name, known, n=3)
    return f"did you mean {', '.join(close)}?" if close else otherwise


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
