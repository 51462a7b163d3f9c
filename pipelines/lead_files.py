"""Reads lead files: CSV as people send it.

Nothing vanishes and nothing stops the rest: every line that holds anything becomes either a lead
or a reject with its line number, the reason and its text.
"""

import csv
import io
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from email_validator import EmailNotValidError, validate_email

FIELDS = ("email", "first_name", "last_name", "company")
REJECT_FIELDS = ("file", "line", "reason", "text")
DELIMITERS = (",", ";", "\t")
# A quoted field may hold a line break. A quote that is still open after so many lines is broken.
MAX_LINES = 5
MAX_FIELD = 200


class LeadFileError(ValueError):
    """A file can't be read as leads at all; the message says why, and what would be right."""


@dataclass(frozen=True)
class LeadFile:
    """What a lead file holds.

    Attributes:
        leads: Columns `FIELDS`, each text, and `line`; addresses are unique, case aside.
        rejects: Columns `REJECT_FIELDS`, in the order of the file.
        stray_columns: Names of the columns that nobody asked for.
    """

    leads: pd.DataFrame
    rejects: pd.DataFrame
    stray_columns: list[str]


@dataclass(frozen=True)
class _Row:
    line: int
    text: str


def read_lead_file(path: Path) -> LeadFile:
    """Read and check a lead file.

    The delimiter is a comma, semicolon or tab. A row needs an address; other columns may be
    missing. Of rows with the same address, case aside, the first counts.

    Args:
        path: A CSV file in UTF-8, with a header that names a column `email`.

    Returns:
        Its leads and what is wrong with the rest.

    Raises:
        LeadFileError: If it has no header with one column `email`.
        OSError: If it can't be opened.
    """
    # Bytes that are no UTF-8 become a character that no valid text has, and reject their line.
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    rows = [
        _Row(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()
    ]
    if not rows:
        raise LeadFileError(f"{path.name} is empty; its first line must name a column 'email'")
    header, delimiter = _header(path.name, rows[0].text)
    good, rejects = _split(rows[1:], len(header), delimiter)
    frame = _frame(good, header, delimiter)
    reasons = _reasons(frame)
    rejects += [
        (row.line, reason, row.text) for row, reason in zip(good, reasons, strict=True) if reason
    ]
    return LeadFile(
        leads=frame.loc[[not reason for reason in reasons]].reset_index(drop=True),
        rejects=pd.DataFrame(
            [(path.name, *reject) for reject in sorted(rejects)], columns=list(REJECT_FIELDS)
        ),
        stray_columns=[name for name in header if name not in FIELDS],
    )


def _header(file: str, line: str) -> tuple[list[str], str]:
    """Return the names of the columns, and the delimiter under which one of them is `email`."""
    for delimiter in DELIMITERS:
        names = [
            "_".join(name.lower().split())
            for name in next(csv.reader([line], delimiter=delimiter), [])
        ]
        if "email" in names:
            break
    else:
        raise LeadFileError(
            f"{file} has no column 'email'; its first line must name one, and is {line[:200]!r}"
        )
    for field in FIELDS:
        if names.count(field) > 1:
            raise LeadFileError(f"{file} has {names.count(field)} columns {field!r}; keep one")
    return names, delimiter


def _split(
    rows: list[_Row], width: int, delimiter: str
) -> tuple[list[_Row], list[tuple[int, str, str]]]:
    """Tell the rows that are CSV of at most `width` fields from the lines that are not.

    A row that spans several lines counts as its first. A line with a quote that nobody closes is
    taken out alone, so that it does not swallow those behind it.
    """
    good: list[_Row] = []
    rejects: list[tuple[int, str, str]] = []
    n = 0
    while n < len(rows):
        row, ahead = rows[n], [row.text for row in rows[n : n + MAX_LINES]]
        span, found = _first_row(ahead, delimiter)
        if isinstance(found, int) and found > width:
            span, found = 1, f"{found} fields where the header has {width}"
        if isinstance(found, str):
            rejects.append((row.line, found, row.text))
        else:
            good.append(_Row(row.line, "\n".join(ahead[:span])))
        n += span
    return good, rejects


def _first_row(lines: list[str], delimiter: str) -> tuple[int, int | str]:
    """Return how many lines the first row spans, and how many fields it has or what is wrong."""
    for span in range(1, len(lines) + 1):
        joined = io.StringIO("\n".join(lines[:span]))
        try:
            (fields,) = csv.reader(joined, delimiter=delimiter, strict=True)
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                continue
            return 1, "a quote is not closed" if span > 1 else f"broken CSV: {error}"
        return span, len(fields)
    return 1, "a quote is not closed"


def _frame(rows: list[_Row], header: list[str], delimiter: str) -> pd.DataFrame:
    """Return the rows as columns `FIELDS`, tidied, and `line`."""
    if rows:
        frame = pd.read_csv(
            io.StringIO("\n".join(row.text for row in rows)),
            sep=delimiter,
            header=None,
            names=list(range(len(header))),
            index_col=False,
            dtype=str,
            keep_default_na=False,
        ).fillna("")  # of rows with too few fields
    else:
        frame = pd.DataFrame(columns=range(len(header)), dtype=str)
    columns = {
        field: frame[header.index(field)].map(_tidy) if field in header else "" for field in FIELDS
    }
    return pd.DataFrame({**columns, "line": [row.line for row in rows]})


def _tidy(value: str) -> str:
    return unicodedata.normalize("NFC", " ".join(value.split()))


def _reasons(frame: pd.DataFrame) -> list[str]:
    """Return why each row is no lead; an empty text for those that are."""
    reasons = []
    first_line: dict[str, int] = {}
    for lead in frame.to_dict("records"):
        reason = _flaw_of_address(lead["email"])
        for field in FIELDS:
            if not reason and (flaw := _flaw_of_text(lead[field])):
                reason = f"{field} {flaw}"
        if not reason:
            line = first_line.setdefault(lead["email"].casefold(), lead["line"])
            if line != lead["line"]:
                reason = f"the address is that of line {line}"
        reasons.append(reason)
    return reasons


def _flaw_of_address(address: str) -> str:
    if not address:
        return "no address"
    try:
        validate_email(address, check_deliverability=False)
    except EmailNotValidError as error:
        return f"malformed address: {error}"
    return ""


def _flaw_of_text(text: str) -> str:
    if len(text) > MAX_FIELD:
        return f"is longer than {MAX_FIELD} characters"
    for character in text:
        if character == "\N{REPLACEMENT CHARACTER}":
            return "is not UTF-8"
        if unicodedata.category(character) == "Cc":
            return f"has the control character U+{ord(character):04X}"
    return ""
