"""Reads lead files: CSV as people and their tools export it.

Every non-empty line becomes a lead, a part of a lead, or a reject (with line number, reason and
text). An invalid line does not affect the others, and a line that may be inside a quoted field
never becomes a lead.
"""

import codecs
import csv
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import charset_normalizer
import pandas as pd
from email_validator import EmailNotValidError, validate_email

FIELDS = ("email", "first_name", "last_name", "company")
REJECT_FIELDS = ("file", "line", "reason", "text")

# The names of each field's column; if a file has several, the first of these is used. Case,
# spaces and punctuation don't matter: `first_name` stands for `First Name`, `firstName` and
# `FIRST-NAME` too.
COLUMN_NAMES = {
    "email": (
        "email",
        "e_mail",
        "email_address",  # Mailchimp, LinkedIn, Hunter
        "e_mail_address",  # Outlook
        "work_email",  # Clay
        "business_email",
        "contact_email",  # Apollo
        "primary_email",
        "e_mail_1_value",  # Google Contacts
    ),
    "first_name": ("first_name", "firstname", "given_name", "fname"),
    "last_name": ("last_name", "lastname", "family_name", "surname", "lname"),
    "company": (
        "company",
        "company_name",  # Apollo, Instantly, HubSpot, ZoomInfo
        "companyname",
        "organization",  # Hunter
        "organization_name",  # Google Contacts
        "organization_1_name",
        "organisation",
        "account_name",  # Salesforce
        "company_account",
    ),
}

DELIMITERS = (",", ";", "\t", "|")
DELIMITER_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: ("utf-8-sig", "UTF-8"),
    codecs.BOM_UTF16_LE: ("utf-16", "UTF-16"),
    codecs.BOM_UTF16_BE: ("utf-16", "UTF-16"),
}
# What spreadsheets save where UTF-8 is not the default. It is Windows-1252 unless another is more
# likely.
CODE_PAGES = {
    "cp1252": "Windows-1252",
    "cp1250": "Windows-1250",
    "cp1251": "Windows-1251",
    "cp1253": "Windows-1253",
    "cp1254": "Windows-1254",
    "cp932": "Shift-JIS",
    "gb18030": "GB18030",
    "big5": "Big5",
    "cp949": "EUC-KR",
}
# Differences of charset-normalizer's measures, from 0 to 1, that say nothing about short names.
SIMILAR = 0.02
WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # .xlsx, .xls

MAX_FIELD = 200
MAX_CELL = 32_000  # a cell of a spreadsheet holds 32,767 characters


class LeadFileError(ValueError):
    """A file can't be read as leads; the message says why and what is expected."""


@dataclass(frozen=True)
class LeadFile:
    """The contents of a lead file.

    Attributes:
        leads: Columns `FIELDS` (text) and `line`; addresses are normalized and unique, ignoring
            case.
        rejects: Columns `REJECT_FIELDS`, in file order.
        columns: The column of each field that has one, as the file spells it.
        stray_columns: Names of ignored columns.
        encoding: Such as `UTF-8`.
        delimiter: What separates the columns.
    """

    leads: pd.DataFrame
    rejects: pd.DataFrame
    columns: dict[str, str]
    stray_columns: list[str]
    encoding: str
    delimiter: str

    @property
    def summary(self) -> str:
        """What was recognized, for the log."""
        separator = DELIMITER_NAMES.get(self.delimiter, repr(self.delimiter))
        used = [f"{field} from {name!r}" for field, name in self.columns.items()]
        missing = [field for field in FIELDS if field not in self.columns]
        parts = [f"read as {self.encoding}, separated by {separator}", ", ".join(used)]
        if missing:
            parts.append(f"no column for {', '.join(missing)}")
        if self.stray_columns:
            parts.append(f"ignored columns: {_quoted(self.stray_columns)}")
        return "; ".join(parts)


@dataclass(frozen=True)
class _Row:
    line: int
    text: str
    values: list[str]


@dataclass(frozen=True)
class _Reject:
    line: int
    reason: str
    text: str


@dataclass(frozen=True)
class _Header:
    """The first row, and where the rows begin.

    Attributes:
        names: The columns.
        fields: The index of the column of each field that has one.
        delimiter: What separates the columns.
        end: The index of the line after it.
    """

    names: list[str]
    fields: dict[str, int]
    delimiter: str
    end: int


def read_lead_file(path: Path) -> LeadFile:
    """Read and check a lead file.

    Encoding, delimiter and the columns are recognized. An address is required; other columns may
    be missing. Of rows with the same address, the first is used.

    Args:
        path: A CSV file whose header has a column for the address (`COLUMN_NAMES`).

    Raises:
        LeadFileError: If its header does not have exactly one such column.
        OSError: If it can't be opened.
    """
    text, encoding = _decode(path)
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    header = _header(path.name, lines, encoding)
    rows, rejects = _split(lines, header)
    leads: list[dict[str, str | int]] = []
    line_of: dict[str, int] = {}
    for row in rows:
        lead, reason = _lead(row, header, encoding)
        if not reason:
            line = line_of.setdefault(lead["email"].casefold(), row.line)
            if line != row.line:
                reason = f"the address is that of line {line}"
        if reason:
            rejects.append(_Reject(row.line, reason, row.text))
        else:
            leads.append({**lead, "line": row.line})
    return LeadFile(
        leads=pd.DataFrame(leads, columns=[*FIELDS, "line"]),
        rejects=pd.DataFrame(
            [
                (path.name, reject.line, reject.reason, _shortened(reject.text))
                for reject in sorted(rejects, key=lambda reject: reject.line)
            ],
            columns=list(REJECT_FIELDS),
        ),
        columns={field: header.names[index] for field, index in header.fields.items()},
        stray_columns=[
            name
            for index, name in enumerate(header.names)
            if name and index not in header.fields.values()
        ],
        encoding=encoding,
        delimiter=header.delimiter,
    )


def _decode(path: Path) -> tuple[str, str]:
    """Return the text of a file, and the name of its encoding.

    Bytes that are invalid in it become U+FFFD, which rejects their line.
    """
    data = path.read_bytes()
    if data.startswith(WORKBOOKS):
        raise LeadFileError(f"{path.name} is an Excel workbook or an archive; save it as CSV")
    codec, name = _encoding(data)
    return data.decode(codec, errors="replace"), name


def _encoding(data: bytes) -> tuple[str, str]:
    """Return codec and name of the encoding.

    It is UTF-8 if at least half of the lines that can tell are valid UTF-8, so that a few invalid
    ones do not garble the others; and if several code pages are equally likely, so that their
    lines are rejected rather than garbled.
    """
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if data.startswith(mark):
            return encoding
    if b"\0" in data[:2]:
        return ("utf-16-be" if data.startswith(b"\0") else "utf-16-le"), "UTF-16"
    lines = [line for line in data.splitlines() if not line.isascii()]
    if 2 * sum(map(_is_utf8, lines)) >= len(lines):
        return "utf-8", "UTF-8"
    # Lines in ASCII would only dilute what the others say.
    matches = list(charset_normalizer.from_bytes(b"\n".join(lines), cp_isolation=list(CODE_PAGES)))
    if not matches:
        return "utf-8", "UTF-8"
    chaos = min(match.chaos for match in matches)
    readable = [match for match in matches if match.chaos <= chaos + SIMILAR]
    coherence = max(match.coherence for match in readable)
    likely = {
        codec
        for match in readable
        if match.coherence >= coherence - SIMILAR
        for codec in (match.encoding, *match.could_be_from_charset)
        if codec in CODE_PAGES
    }
    if "cp1252" in likely:
        likely = {"cp1252"}
    if len(likely) != 1:
        return "utf-8", "UTF-8"
    (codec,) = likely
    return codec, CODE_PAGES[codec]


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _header(file: str, lines: Sequence[str], encoding: str) -> _Header:
    """Find the columns, with the delimiter with which one of them is that of the address."""
    start = _next_line(lines, 0)
    delimiters = DELIMITERS
    if start < len(lines) and (sep := re.fullmatch(r'"?sep=([^\w"])"?', lines[start].rstrip(" "))):
        delimiters = (sep[1], *DELIMITERS)
        start = _next_line(lines, start + 1)
    if start == len(lines):
        raise LeadFileError(f"{file} is empty; its first line must name a column 'email'")
    best = _read_row(lines, start, delimiters[0])
    for delimiter in delimiters:
        row = _read_row(lines, start, delimiter)
        names = [" ".join(name.split()) for name in row.values]
        if fields := _fields(file, names):
            return _Header(names, fields, delimiter, row.end)
        best = max(best, row, key=lambda row: len(row.values))
    names = _quoted([" ".join(name.split()) for name in best.values])
    raise LeadFileError(
        f"{file} has no column 'email'; its first line must name one, and is "
        f"{lines[start][:200]!r} (read as {encoding}; {best.error or f'its columns are {names}'})"
    )


def _fields(file: str, names: list[str]) -> dict[str, int]:
    """Return the index of the column of each field; nothing without an address."""
    plain = [_plain(name) for name in names]
    fields = {}
    for field, aliases in COLUMN_NAMES.items():
        alias = next((alias for alias in aliases if alias in plain), None)
        if alias is None:
            if field == "email":
                return {}
            continue
        if (count := plain.count(alias)) > 1:
            raise LeadFileError(f"{file} has {count} columns {alias!r}; keep one")
        fields[field] = plain.index(alias)
    return fields


def _plain(name: str) -> str:
    """Return a column name in lower case with underscores.

    Example:
        >>> _plain("companyName"), _plain("E-mail 1 - Value")
        ('company_name', 'e_mail_1_value')
    """
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return re.sub(r"[\W_]+", "_", words).strip("_").lower()


@dataclass(frozen=True)
class _Read:
    """A row as CSV: its values, or its error.

    Attributes:
        values: None of them if there is an error.
        error: Empty if it is valid.
        end: The index of the line after it.
    """

    values: list[str]
    error: str
    end: int


def _read_row(lines: Sequence[str], start: int, delimiter: str) -> _Read:
    """Read the row that begins with a line."""
    reader = csv.reader(
        (f"{lines[index]}\n" for index in range(start, len(lines))),
        delimiter=delimiter,
        skipinitialspace=True,
        strict=True,
    )
    try:
        values = next(reader)
    except csv.Error as error:
        is_open = reader.line_num > 1 or "unexpected end of data" in str(error)
        reason = "a quote is not closed" if is_open else f"broken CSV: {error}"
        return _Read([], reason, start + 1)
    return _Read(values, "", start + reader.line_num)


def _split(lines: Sequence[str], header: _Header) -> tuple[list[_Row], list[_Reject]]:
    """Separate rows from invalid lines.

    A row that spans several lines has the number of its first. After a quote that is not closed,
    lines count as rows again, unless one of them seems to close it or has too few fields.
    """
    rows: list[_Row] = []
    rejects: list[_Reject] = []
    width = len(header.names)
    open_since = 0
    start = _next_line(lines, header.end)
    while start < len(lines):
        line, read = start + 1, _read_row(lines, start, header.delimiter)
        end, count = read.end, len(read.values)
        text = "\n".join(lines[start:end])
        if read.error:
            end = _end_of_quote(lines, start, header.delimiter)
            rejects += _reject_lines(lines, start, end, read.error)
            open_since = line if end == start + 1 else 0
        elif any(_is_like_a_lead(inner, header) for inner in lines[start + 1 : end]):
            reason = f"a quote is open until line {end}, over lines that look like leads"
            rejects += _reject_lines(lines, start, end, reason)
        elif count > width:
            rejects.append(_Reject(line, f"{count} fields where the header has {width}", text))
        elif open_since and count < width:
            reason = f"{count} fields where the header has {width}, after the open quote in line"
            rejects.append(_Reject(line, f"{reason} {open_since}", text))
        else:
            open_since = 0
            rows.append(_Row(line, text, read.values))
        start = _next_line(lines, end)
    return rows, rejects


def _next_line(lines: Sequence[str], start: int) -> int:
    """Return the index of the next line that is not blank."""
    while start < len(lines) and not lines[start].strip():
        start += 1
    return start


def _end_of_quote(lines: Sequence[str], start: int, delimiter: str) -> int:
    """Return the index after the line that seems to close the quote of an invalid line.

    That is a row of one line with an odd number of quotes: `Call me",Acme`. Without one, it is
    the index after the invalid line.
    """
    size = 0
    index = start + 1
    while index < len(lines) and size <= MAX_CELL:
        read = _read_row(lines, index, delimiter)
        if read.error:
            break
        if read.end == index + 1 and lines[index].count('"') % 2:
            return read.end
        size += sum(map(len, lines[index : read.end]))
        index = read.end
    return start + 1


def _reject_lines(lines: Sequence[str], start: int, end: int, reason: str) -> list[_Reject]:
    """Reject each line, so that none of them is lost in the text of another."""
    inside = f"may be inside the quote that opens in line {start + 1}"
    return [
        _Reject(index + 1, inside if index > start else reason, lines[index])
        for index in range(start, end)
        if lines[index].strip()
    ]


def _is_like_a_lead(line: str, header: _Header) -> bool:
    """Whether a line inside a quoted field would be a full row by itself."""
    if "@" not in line or len(header.names) == 1:
        return False
    values = _read_row([line], 0, header.delimiter).values
    return len(values) == len(header.names) and not _address(values[header.fields["email"]])[1]


def _lead(row: _Row, header: _Header, encoding: str) -> tuple[dict[str, str], str]:
    """Return the lead of a row, and why it is none; empty if it is one."""
    lead: dict[str, str] = dict.fromkeys(FIELDS, "")
    for field, index in header.fields.items():
        if index < len(row.values):
            lead[field] = _normalize(row.values[index])
    lead["email"], reason = _address(lead["email"])
    for field in FIELDS:
        if not reason and (flaw := _flaw_of_text(lead[field], encoding)):
            reason = f"{field} {flaw}"
    return lead, reason


def _normalize(value: str) -> str:
    return unicodedata.normalize("NFC", " ".join(value.split()))


def _address(value: str) -> tuple[str, str]:
    """Return an address in its normal form, and what is wrong with it."""
    address = _normalize(value)
    if not address:
        return address, "no address"
    try:
        return validate_email(address, check_deliverability=False).normalized, ""
    except EmailNotValidError as error:
        return address, f"malformed address: {error}"


def _flaw_of_text(text: str, encoding: str) -> str:
    if len(text) > MAX_FIELD:
        return f"is longer than {MAX_FIELD} characters"
    for character in text:
        if character == "\N{REPLACEMENT CHARACTER}":
            return f"is not {encoding}; save the file as UTF-8"
        if unicodedata.category(character) == "Cc":
            return f"has the control character U+{ord(character):04X}"
    return ""


def _quoted(names: Sequence[str]) -> str:
    return _shortened(", ".join(map(repr, names)), 300)


def _shortened(text: str, limit: int = MAX_CELL) -> str:
    return text if len(text) <= limit else f"{text[:limit]}…"
