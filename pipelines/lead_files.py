"""Reads lead files: CSV as people send it.

Every non-empty line becomes a lead or a reject (with line number, reason and text). An invalid
line never affects the others.
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
# A quoted field may contain line breaks. A quote still open after this many lines is invalid.
MAX_LINES = 5
MAX_FIELD = 200


class LeadFileError(ValueError):
    """A file can't be read as leads; the message says why and what is expected."""


@dataclass(frozen=True)
class LeadFile:
    """The contents of a lead file.

    Attributes:
        leads: Columns `FIELDS` (text) and `line`; addresses are unique, ignoring case.
        rejects: Columns `REJECT_FIELDS`, in file order.
        stray_columns: Names of ignored columns.
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

    The delimiter is a comma, semicolon or tab. An address is required; other columns may be
    missing. Of rows with the same address, ignoring case, the first is used.

    Args:
        path: A CSV file in UTF-8 whose header has a column `email`.

    Raises:
        LeadFileError: If its header does not have exactly one column `email`.
        OSError: If it can't be opened.
    """
    # Invalid UTF-8 becomes U+FFFD, which rejects the line.
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
    """Return the column names, and the delimiter with which one of them is `email`."""
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
    """Separate valid rows of at most `width` fields from invalid lines.

    A row that spans several lines has the number of its first. A line with an unclosed quote is
    rejected alone, so that it does not swallow the lines after it.
    """
    good: list[_Row] = []
    rejects: list[tuple[int, str, str]] = []
    n = 0
    while n < len(rows):
        row, ahead = rows[n], [row.text for row in rows[n : n + MAX_LINES]]
        span, fields_or_error = _first_row(ahead, delimiter)
        if isinstance(fields_or_error, int) and fields_or_error > width:
            span, fields_or_error = 1, f"{fields_or_error} fields where the header has {width}"
        if isinstance(fields_or_error, str):
            rejects.append((row.line, fields_or_error, row.text))
        else:
            good.append(_Row(row.line, "\n".join(ahead[:span])))
        n += span
    return good, rejects


def _first_row(lines: list[str], delimiter: str) -> tuple[int, int | str]:
    """Return the number of lines of the first row, and its number of fields or its error."""
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
    """Return the rows as normalized columns `FIELDS`, and `line`."""
    if rows:
        frame = pd.read_csv(
            io.StringIO("\n".join(row.text for row in rows)),
            sep=delimiter,
            header=None,
            names=list(range(len(header))),
            index_col=False,
            dtype=str,
            keep_default_na=False,
        ).fillna("")  # rows with too few fields
    else:
        frame = pd.DataFrame(columns=range(len(header)), dtype=str)
    columns = {
        field: frame[header.index(field)].map(_normalize) if field in header else ""
        for field in FIELDS
    }
    return pd.DataFrame({**columns, "line": [row.line for row in rows]})


def _normalize(value: str) -> str:
    return unicodedata.normalize("NFC", " ".join(value.split()))


def _reasons(frame: pd.DataFrame) -> list[str]:
    """Return the reason to reject each row; empty for leads."""
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
