"""Text from people and for people: checks, escapes, times, suggestions."""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from difflib import get_close_matches
from hashlib import sha256

MAX_REASON = 1000
MAX_ACTOR = 256
MAX_PART = 512
"""Maximum length of the name of a service, a campaign or a partition."""
MAX_OP = 256
MAX_NAME = 2 * MAX_PART + 1
"""Maximum length of the name of a campaign run: `campaign/partition`."""
MAX_DURATION = timedelta(days=3660)
"""The longest duration that a person may ask for: ten years."""
# Control characters, format characters (invisible, or changing the writing direction), surrogates
# and line separators.
_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}

_OTHERS_SUCCEEDED = re.compile(r"^.{0,200}? for this record, \d+ others succeeded: ")
_OF_ONE_RECORD = re.compile(
    r"https?://[^\s'\"):]+(?:[:/][^\s'\"):]+)*|[\w.+-]+@[\w.-]+\w|\b(?![45]\d\d\b)\w*\d\w*\b"
)


def checked(text: str, what: str, longest: int) -> str:
    """Return a text that a person entered, if it is acceptable.

    Args:
        what: What it is, for the error: "reason".

    Raises:
        ValueError: If it is blank, too long, or has an invisible character.

    Example:
        >>> checked("new copy", "reason", 100)
        'new copy'
    """
    if not text.strip():
        raise ValueError(f"the {what} is empty")
    if len(text) > longest:
        raise ValueError(f"the {what} has {len(text)} characters; the limit is {longest}")
    for place, character in enumerate(text):
        if unicodedata.category(character) in _HIDDEN:
            raise ValueError(
                f"the {what} has {_escaped(character)} at character {place + 1}: write it on one "
                "line, without control characters"
            )
    return text


def shown(text: str) -> str:
    r"""Return a text with invisible characters escaped, so that it can't control a terminal.

    Example:
        >>> shown("red \x1b[31m")
        'red \\x1b[31m'
    """
    return "".join(
        _escaped(character) if unicodedata.category(character) in _HIDDEN else character
        for character in text
    )


def utc(time: datetime) -> str:
    """Return a time, in UTC, for people."""
    return f"{time:%F %T} UTC"


def length(time: timedelta) -> str:
    """Return a duration for people.

    Example:
        >>> length(timedelta(seconds=90)), length(timedelta(minutes=12)), length(timedelta(days=3))
        ('90 s', '12 min', '3 d')
        >>> length(timedelta(hours=4, minutes=47)), length(timedelta(days=2, hours=23))
        ('4 h 47 min', '2 d 23 h')
    """
    seconds = max(0, round(time.total_seconds()))
    if seconds < 120:
        return f"{seconds} s"
    minutes, hours = seconds // 60, seconds // 3600
    if hours < 2:
        return f"{minutes} min"
    if hours < 48:
        return f"{hours} h {minutes % 60} min" if minutes % 60 else f"{hours} h"
    return f"{hours // 24} d {hours % 24} h" if hours % 24 else f"{hours // 24} d"


def words(status: object) -> str:
    """Return a status for people.

    Example:
        >>> words("half_open")
        'half open'
    """
    return str(status).replace("_", " ")


def plural(count: int, noun: str) -> str:
    """Return a count with its noun.

    Example:
        >>> plural(1, "run"), plural(3, "run")
        ('1 run', '3 runs')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def enumerated(names: Sequence[str], noun: str, most: int = 3) -> str:
    """Return names as a list for people, or how many there are if that is more than `most`.

    Example:
        >>> enumerated(["a", "b", "c"], "service"), enumerated(["a", "b", "c", "d"], "service")
        ('a, b and c', '4 services')
    """
    if len(names) > most:
        return plural(len(names), noun)
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def sentence(text: str) -> str:
    """Return a text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def bounded(name: str, longest: int) -> str:
    """Return a name that fits a column: the end of a long one is a digest of it.

    Example:
        >>> bounded("send", 256), bounded("x" * 300, 20)
        ('send', 'xxx~0d4e2ca9e9cbced7')
    """
    if len(name) <= longest:
        return name
    return f"{name[: longest - 17]}~{sha256(name.encode()).hexdigest()[:16]}"


def alike(error: str) -> str:
    """Return an error without what differs between records: names, addresses, numbers.

    HTTP statuses stay.

    Example:
        >>> alike("HTTPError('422 for url https://api.example.org/leads/17: no lead ada@b.org')")
        "HTTPError('422 for url ...: no lead ...')"
        >>> alike("500 for this record, 299 others succeeded: Timeout('lead-7')")
        "Timeout('lead-...')"
    """
    return _OF_ONE_RECORD.sub("...", _OTHERS_SUCCEEDED.sub("", error))


def most_frequent(counts: Mapping[str, int], limit: int = 3) -> str:
    """Return what is counted most, for people.

    Example:
        >>> most_frequent({"422 invalid id": 31, "no such lead": 2})
        '422 invalid id x31, no such lead x2'
    """
    most = sorted(counts.items(), key=lambda item: -item[1])
    more = len(most) - limit
    words = ", ".join(f"{text} x{count}" for text, count in most[:limit])
    return f"{words} and {more} more" if more > 0 else words


def did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    """Suggest the known names close to an unknown one, or return another hint.

    Example:
        >>> did_you_mean("outraech", ["outreach", "digest"], "see 'tidegate campaigns'")
        'did you mean outreach?'
    """
    close = get_close_matches(name, known, n=3)
    return f"did you mean {', '.join(close)}?" if close else otherwise


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
