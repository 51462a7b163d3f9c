"""Text that people give: what may be kept of it, and how it is shown without doing harm."""

import unicodedata

LONGEST_REASON = 1000
LONGEST_ACTOR = 256
LONGEST_NAME = 512
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


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
