"""What is known about the answers of a service: data, in TOML files that a person can extend."""

import re
import tomllib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from dagster_tidegate.breaker.answers import Answer
from dagster_tidegate.breaker.verdicts import Scope, VerdictKind

DIRECTORY = Path(__file__).with_name("profiles")
NAMES = tuple(sorted(path.stem for path in DIRECTORY.glob("*.toml")))
USED_UP = "used_up"
"""A quota is used up: `throttled` if the answer says until when, otherwise `denied`."""

_MAX_EXTENDS = 8


MAX_CODE = 200
"""So much of a text is read as a code: its patterns take the square of its length."""


def code_of(text: str) -> str:
    """Return a machine code in the form in which codes are compared.

    Case, separators and name spaces make no difference, nor does the ending "exception", nor
    "error" after two words.

    Example:
        >>> code_of("com.amazonaws#ThrottlingException"), code_of("RateLimitError")
        ('throttling', 'rate_limit')
    """
    return _code_of(text[:MAX_CODE])


@lru_cache(maxsize=4096)
def _code_of(text: str) -> str:
    if re.match(r"(?i)https?:|urn:", text):
        text = re.split(r"[/#:]", text.rstrip("/"))[-1]
    text = text.rpartition("#")[2]
    text = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", text)
    text = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
    text = re.sub(r"(?<=.)_exception$", "", text)
    return re.sub(r"(?<=_)(\w+?)_error$", r"\1", text)  # "server_error" is more than "server"


def _code_or_pattern(text: str) -> str:
    """Return an entry of a list of codes: a code, or a pattern of codes with `*` in it.

    Raises:
        ValueError: If it is a pattern that would match almost every code.
    """
    if "*" not in text:
        return code_of(text)
    pattern = text.lower()
    if not re.fullmatch(r"[a-z0-9_*]+", pattern) or len(pattern.replace("*", "")) < 4:
        raise ValueError("a pattern has letters, digits, _ and *, and at least four that are not *")
    return pattern


@lru_cache(maxsize=4096)
def _expression(entry: str, gap: str, start: str = "") -> re.Pattern[str]:
    return re.compile(start + gap.join(map(re.escape, entry.split("*"))))


@lru_cache(maxsize=4096)
def _by_pattern(patterns: tuple[tuple[str, str], ...], code: str) -> str | None:
    for pattern, kind in patterns:
        if _expression(pattern, ".*").fullmatch(code):
            return kind
    return None


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


_Code = Annotated[str, Field(min_length=1), AfterValidator(code_of)]
_CodeOrPattern = Annotated[str, Field(min_length=1), AfterValidator(_code_or_pattern)]
_Phrase = Annotated[
    str, Field(min_length=4), AfterValidator(lambda phrase: " ".join(phrase.lower().split()))
]
_Status = Annotated[int, Field(ge=100, le=599)]


T = TypeVar("T")


class _Lists(_Table, Generic[T]):
    """What stands for each meaning: codes, phrases or statuses."""

    denied: list[T] = []
    used_up: list[T] = []
    throttled: list[T] = []
    pending: list[T] = []
    rejected: list[T] = []
    failure: list[T] = []


class _ListsWithSuccess(_Lists[T]):
    success: list[T] = []


class Rule(_Table):
    """A verdict for answers that meet all conditions of the rule. Rules are looked at first.

    Attributes:
        verdict: The verdict, or `used_up`.
        scope: What it is about; None: as for a code with this verdict.
        reason: A short name, for people. Default: the status.
        status: The status is one of these.
        field: Fields of the JSON body have these values; "error.code" is a field within a field.
            "" is empty, null or missing.
        says: The body contains one of these texts.
        header: Headers contain these texts.
    """

    verdict: Literal[
        "success", "failure", "throttled", "used_up", "denied", "pending", "rejected", "ignored"
    ]
    scope: Scope | None = None
    reason: str = ""
    status: list[_Status] = []
    field: dict[str, str | int | bool] = {}
    says: list[_Phrase] = []
    header: dict[str, str] = {}

    @model_validator(mode="after")
    def _has_a_condition(self) -> Self:
        if not (self.status or self.field or self.says or self.header):
            raise ValueError("without status, field, says or header it would match every answer")
        return self

    def matches(self, answer: Answer, status: int) -> bool:
        """Return whether an answer meets all conditions."""
        if self.status and status not in self.status:
            return False
        if any(_field(answer.json, path) != _plain(value) for path, value in self.field.items()):
            return False
        if any(
            text.lower() not in answer.headers.get(name, "").lower()
            for name, text in self.header.items()
        ):
            return False
        if not self.says:
            return True
        text = answer.text.lower()
        return any(find(phrase, text) for phrase in self.says)


class _File(_Table):
    extends: str | None = None
    json_only: bool | None = None
    retry_after_first: bool | None = None
    throttled_scope: Scope | None = None
    endpoint_codes: list[_Code] = []
    unwell_titles: list[_Phrase] = []
    codes: _ListsWithSuccess[_CodeOrPattern] = _ListsWithSuccess()
    phrases: _Lists[_Phrase] = _Lists()
    statuses: _ListsWithSuccess[_Status] = _ListsWithSuccess()
    rules: list[Rule] = []


@dataclass(frozen=True)
class Profile:
    """What is known about the answers of a service.

    Attributes:
        json_only: Successful answers are JSON: an HTML page is none.
        retry_after_first: `Retry-After` alone says when to call again, since the resets of this
            service name the time when a quota is full again, and not when it has something left.
        throttled_scope: What `throttled` is about if a code does not say.
        endpoint_codes: Codes that are about the endpoint that was called, and no other.
        unwell_titles: Texts in the title of an HTML page of a service that is unwell.
        codes: What a machine code means.
        patterns: What the codes mean that match one of these, where no code is in `codes`.
        phrases: What a text in a message means; the first that is contained decides.
        statuses: What a status means, where it is not what RFC 9110 says of its class.
        rules: Verdicts on answers that meet several conditions.
    """

    name: str
    json_only: bool
    retry_after_first: bool
    throttled_scope: Scope
    endpoint_codes: frozenset[str]
    unwell_titles: tuple[str, ...]
    codes: dict[str, str]
    patterns: tuple[tuple[str, str], ...]
    phrases: dict[str, str]
    statuses: dict[int, str]
    rules: tuple[Rule, ...]

    def of_code(self, code: str) -> str | None:
        """Return what a machine code means by the list that it is in."""
        return self.codes.get(code_of(code))

    def of_pattern(self, code: str) -> str | None:
        """Return what a machine code means by the first pattern that it matches.

        A text with spaces is no machine code: it may be about the record.
        """
        return None if " " in code else _by_pattern(self.patterns, code_of(code))

    def of_status(self, status: int) -> str:
        """Return what a status means by itself."""
        kind = self.statuses.get(status)
        if kind is not None:
            return kind
        return VerdictKind.REJECTED if 400 <= status < 500 else VerdictKind.FAILURE


def check_name(name: str) -> str:
    """Return the name of a profile, or the path of a file that may be one.

    Raises:
        ValueError: If it is neither.
    """
    if name not in NAMES and not name.endswith(".toml"):
        raise ValueError(
            f"there is no profile {name!r}: use one of {', '.join(NAMES)}, or the path of a "
            "TOML file of your own (docs/answers.md)"
        )
    return name


@lru_cache(maxsize=64)
def load(name: str) -> Profile:
    """Return a profile.

    Args:
        name: One of `NAMES`, or the path of a TOML file.

    Raises:
        ValueError: If there is none, or it is invalid; the message says what and where.

    Example:
        >>> load("apollo").codes["api_inaccessible"]
        'denied'
    """
    files = _files(name)

    def own(option: str, default: Any) -> Any:
        values = (getattr(file, option) for file in files)
        return next((value for value in values if value is not None), default)

    # The lists of a profile come before those that it extends.
    codes = _meanings([file.codes for file in files])
    return Profile(
        name=name,
        json_only=own("json_only", False),
        retry_after_first=own("retry_after_first", False),
        throttled_scope=own("throttled_scope", Scope.SERVICE),
        endpoint_codes=frozenset(code for file in files for code in file.endpoint_codes),
        unwell_titles=tuple(title for file in files for title in file.unwell_titles),
        codes={code: kind for code, kind in codes.items() if "*" not in code},
        patterns=tuple((code, kind) for code, kind in codes.items() if "*" in code),
        phrases=_meanings([file.phrases for file in files]),
        statuses=_meanings([file.statuses for file in files]),
        rules=tuple(rule for file in files for rule in file.rules),
    )


def _files(name: str) -> list[_File]:
    """Return a profile and those that it extends."""
    files: list[_File] = []
    path = _path(name, None)
    for _ in range(_MAX_EXTENDS):
        files.append(_read(path))
        base = files[-1].extends
        if base is None:
            return files
        path = _path(base, path)
    raise ValueError(f"profile {name!r} extends itself, or more than {_MAX_EXTENDS} others")


def _path(name: str, beside: Path | None) -> Path:
    check_name(name)
    if name in NAMES:
        return DIRECTORY / f"{name}.toml"
    path = Path(name)
    return path if beside is None or path.is_absolute() else beside.parent / path


def _read(path: Path) -> _File:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"the profile {path} can't be read: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"the profile {path} is not valid TOML: {error}") from error
    try:
        file = _File.model_validate(content)
    except ValidationError as error:
        flaws = "; ".join(
            f"{'.'.join(map(str, flaw['loc']))}: {flaw['msg']}"
            for flaw in error.errors(include_url=False)
        )
        raise ValueError(f"the profile {path} is invalid: {flaws}") from error
    for table in ("codes", "phrases", "statuses"):
        _refuse_doubles(path, table, getattr(file, table))
    return file


def _refuse_doubles(path: Path, table: str, lists: _Table) -> None:
    kinds: dict[Any, str] = {}
    for kind, values in lists:
        for value in values:
            if kinds.setdefault(value, kind) != kind:
                raise ValueError(
                    f"the profile {path} is invalid: {table}: {value!r} is in {kinds[value]} and "
                    f"in {kind}: remove one"
                )


def _meanings(tables: list[Any]) -> dict[Any, str]:
    meanings: dict[Any, str] = {}
    for table in tables:
        for kind, values in table:
            for value in values:
                meanings.setdefault(value, kind)
    return meanings


def find(phrase: str, text: str) -> str | None:
    """Return where a text has a phrase, in which `*` stands for up to three words.

    Example:
        >>> find("insufficient * credit", "you have insufficient lead credits")
        'insufficient lead credit'
    """
    if "*" not in phrase:
        return phrase if phrase in text else None
    match = _expression(phrase.replace(" *", "*"), r"(?: \S+){0,3}", r"\b").search(text)
    return None if match is None else match[0]


def _field(node: Any, path: str) -> str:
    """Return the value of a field as text; "" if it is null or missing."""
    for name in path.split("."):
        node = node.get(name) if isinstance(node, dict) else None
    return "" if node is None else _plain(node)


def _plain(value: object) -> str:
    return str(value).strip().lower()
