"""The fields of forms, checked as the API checks its bodies."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar
from uuid import UUID

from pydantic import BaseModel, ValidationError
from starlette.datastructures import QueryParams

from dagster_tidegate.holds import Target, TargetKind, named
from dagster_tidegate.web.api.problems import Code, Problem

MAX_TARGETS = 500
MAX_FIELDS = 1000
M = TypeVar("M", bound=BaseModel)


class Form:
    """The fields of a form, or the parameters of a link to it.

    Raises:
        Problem: `invalid`, if there are too many.

    Example:
        >>> Form("target=service+openai&reason=new+key").targets()
        [Target(kind=<TargetKind.SERVICE: 'service'>, name='openai')]
    """

    def __init__(self, fields: str) -> None:
        self._fields = QueryParams(fields)
        if len(self._fields.multi_items()) > MAX_FIELDS:
            raise Problem(Code.INVALID, f"a form has at most {MAX_FIELDS} fields")

    def text(self, name: str) -> str:
        """Return a field; an empty string if it is missing."""
        return self._fields.get(name, "").strip()

    def all(self, name: str) -> Sequence[str]:
        """Return all values of a field."""
        return self._fields.getlist(name)

    def given(self, name: str) -> list[tuple[str, str]]:
        """Return the values of a field as fields of the next form."""
        return [(name, value) for value in self.all(name)]

    def targets(self) -> Sequence[Target]:
        """Return the chosen targets.

        Raises:
            Problem: `invalid`, if there is none, or one can't exist.
        """
        keys = list(dict.fromkeys(self.all("target")))
        if not keys:
            raise Problem(Code.INVALID, "nothing is selected: go back and select something")
        if len(keys) > MAX_TARGETS:
            raise Problem(Code.INVALID, f"select {MAX_TARGETS} or fewer at once")
        return [_target(key) for key in keys]

    def number(self, name: str) -> int:
        """Return a field that is a positive number.

        Raises:
            Problem: `invalid`.
        """
        value = self.text(name)
        is_short = value.isascii() and value.isdecimal() and len(value) < 20
        if not (is_short and 0 < int(value) < 2**63):
            raise Problem(Code.INVALID, f"{name}: this is not a number: {value[:20]!r}")
        return int(value)

    def id(self, name: str) -> str:
        """Return a field that is a UUID.

        Raises:
            Problem: `invalid`.
        """
        try:
            return str(UUID(self.text(name)))
        except ValueError as error:
            raise Problem(Code.INVALID, f"{name}: this is not an id") from error

    def body(self, model: type[M], **values: Any) -> M:
        """Return the body of the API's request that the form stands for.

        Raises:
            Problem: `invalid`, with what is wrong.
        """
        if "reason" in model.model_fields:
            values.setdefault("reason", self.text("reason"))
        if "for_seconds" in model.model_fields and self.text("for_seconds"):
            values["for_seconds"] = self.number("for_seconds")
        try:
            return model(**values)
        except ValidationError as error:
            texts = [_complaint(each) for each in error.errors()]
            raise Problem(Code.INVALID, "; ".join(dict.fromkeys(texts))) from error


def _target(key: str) -> Target:
    kind, _, name = key.partition(" ")
    try:
        return named(TargetKind(kind), name)
    except ValueError as error:
        raise Problem(Code.INVALID, f"target: {error}") from error


def _complaint(error: Mapping[str, Any]) -> str:
    said = str(error["msg"]).removeprefix("Value error, ")
    name = str(error["loc"][-1]) if error["loc"] else ""
    return said if name in said else f"{name}: {said}"
