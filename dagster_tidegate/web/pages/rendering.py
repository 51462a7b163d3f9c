"""Turns templates into answers: the page around them, fragments of it, and problems as pages."""

import re
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any
from urllib.parse import quote, urlencode

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.responses import HTMLResponse, Response

from dagster_tidegate.holds import Target, TargetKind
from dagster_tidegate.settings import PAGES
from dagster_tidegate.store.service_stats import Calls
from dagster_tidegate.store.tokens import Role
from dagster_tidegate.text import length, plural, sentence, utc, words
from dagster_tidegate.web.access.identity import Identity
from dagster_tidegate.web.api.context import AppContext
from dagster_tidegate.web.api.problems import Code, Problem, problem_of
from dagster_tidegate.web.pages.assets import addresses
from dagster_tidegate.web.pages.audit import differences
from dagster_tidegate.web.pages.runbooks import with_code

FRAGMENTS = "X-Tidegate-Fragments"
"""A request with this header gets only the named blocks of a page."""
MAX_FRAGMENTS = 20
MAX_TEXT = 120
"""How much of what a service said a table shows."""
_DAGSTER_RUN = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_COMMAND = re.compile(r" \('tidegate [^')]*'(; 'tidegate [^')]*')*\)")
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
MEDIA_TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
TONES = {
    **dict.fromkeys(("open", "denied", "failed", "suspect"), "bad"),
    **dict.fromkeys(("half_open", "throttled", "in_doubt", "waiting", "would_open"), "warn"),
    **dict.fromkeys(("paused", "held", "kept_closed"), "held"),
    **dict.fromkeys(("processing", "running", "in_flight"), "busy"),
    **dict.fromkeys(("closed", "completed", "done"), "good"),
}
"""The colour of each status; every other one is neutral."""


MEANINGS = (
    ("success", ""),
    ("slow", "succeeded, but took too long"),
    ("failure", "the service is not working"),
    ("throttled", "not to be called before a time"),
    ("denied", "refuses this client until a person repairs the cause"),
    ("pending", "no answer yet for the record"),
    ("rejected", "the record is invalid"),
    ("ignored", "the calling code has an error"),
)
"""What each verdict on a call says, for people."""
DID = {
    "hold": "Held.",
    "release": "Released.",
    "repaired": "A trial call checks the repair.",
    "keep-closed": "The breaker is kept closed.",
    "let-trip": "The breaker may trip again.",
    "start": "Started: the run is in Dagster's queue.",
    "cancel": "Cancelled. A record in flight is finished first.",
    "retry": "Marked: a Dagster run that processes only these is queued.",
    "skip": "Skipped.",
}
"""What a page says after a change."""


@dataclass(frozen=True)
class Banner:
    """Something that is wrong with Tidegate itself.

    Attributes:
        do: What to do about it.
    """

    title: str
    text: str
    do: str = ""


@dataclass(frozen=True)
class Visitor:
    """Who looks at a page, and what the page may offer.

    Attributes:
        read_only: Whether the server refuses every change.
        dagster: Whether the server has code locations, so that runs can be started and linked.
    """

    identity: Identity
    read_only: bool
    dagster: bool

    @property
    def operates(self) -> bool:
        """Whether to offer changes."""
        return not self.read_only and self.identity.role.allows(Role.OPERATOR)

    def controls(self, owners: Sequence[str] | frozenset[str]) -> bool:
        """Return whether to offer changes of a campaign with these owners."""
        return self.operates and self.identity.may_control(owners)


def visitor(context: AppContext, identity: Identity) -> Visitor:
    """Return who looks at a page of an app."""
    return Visitor(identity, context.read_only, context.open_workspace is not None)


class PageRoute(APIRoute):
    """Answers refusals with a page rather than with JSON."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler of the route."""
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError as error:
                texts = [f"{each['loc'][-1]}: {each['msg']}" for each in error.errors()[:5]]
                problem = Problem(Code.INVALID, "; ".join(texts))
            except Exception as error:  # noqa: BLE001 - a person gets a page, whatever failed
                problem = problem_of(request, error)
            return problem_page(problem, request.scope.get("root_path", ""))

        return handled


def page(
    request: Request,
    template: str,
    *,
    visitor: Visitor,
    now: datetime,
    banners: Sequence[Banner],
    last_event: int | None = None,
    **values: Any,
) -> Response:
    """Return a page, or the fragments of it that the request names.

    Args:
        last_event: The event after which its stream begins; None: when it connects.
    """
    prefix = request.scope.get("root_path", "")
    loaded = environment().get_template(template)
    context = {
        **_around(prefix),
        "visitor": visitor,
        "now": now,
        "banners": banners,
        "last_event": last_event,
        "url": lambda path, **query: url(prefix, path, **query),
        "here": _here(request, prefix),
        "did": DID.get(request.query_params.get("did", ""), ""),
        **values,
    }
    names = request.headers.get(FRAGMENTS)
    if names is None:
        return _answer(loaded.render(context))
    known = {**environment().get_template("layout.html").blocks, **loaded.blocks}
    blocks = [known[name] for name in names.split(",")[:MAX_FRAGMENTS] if name in known]
    made = loaded.new_context(context)
    return _answer("\n".join("".join(block(made)) for block in blocks))


def problem_page(problem: Problem, prefix: str) -> Response:
    """Return a problem as a page that says what to do."""
    answer = bare_page("problem.html", prefix, problem.code.status, problem=problem)
    answer.headers.update(problem.headers)
    return answer


def bare_page(
    template: str, prefix: str, status: int = 200, *, csp: str = CSP, **values: Any
) -> Response:
    """Return a page without the navigation, which needs neither a visitor nor the store."""
    text = environment().get_template(template).render(**_around(prefix), **values)
    return _answer(text, status, csp)


def url(prefix: str, path: str, **query: Any) -> str:
    """Return the address of a page; a query parameter that is None or empty is left out."""
    given = {name: value for name, value in query.items() if value not in (None, "", [], ())}
    parameters = f"?{urlencode(given, doseq=True)}" if given else ""
    return f"{prefix}{PAGES}{quote(path)}{parameters}"


def target_url(target: Target) -> str:
    """Return the path of the page about a target."""
    if target.kind is TargetKind.SERVICE:
        return f"/services/{target.name}"
    if target.kind is TargetKind.CAMPAIGN:
        return f"/campaigns/{target.name}"
    return "" if target.kind is TargetKind.EVERYTHING else f"/run/{target.name}"


@cache
def environment() -> Environment:
    """Return the templates. What they show is escaped, and a misspelt name is an error."""
    made = Environment(
        loader=PackageLoader("dagster_tidegate.web.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        when=_when,
        until=_until,
        number=lambda value: f"{value:,}",
        share=_share,
        words=words,
        sentence=sentence,
        plural=plural,
        utc=utc,
        clock=_clock,
        why=_why,
        rate=_rate,
        shorter=_shorter,
        actor=_actor,
        short_ids=_short_ids,
        breakable=_breakable,
        tone=lambda status: TONES.get(str(status), "plain"),
        seconds=lambda value: length(timedelta(seconds=value)),
        target_url=target_url,
        spark_base=_spark_base,
        spark_failures=_spark_failures,
        differences=differences,
        with_code=with_code,
    )
    made.globals["meanings"] = MEANINGS
    # Blocks that are rendered alone do not execute the imports of their template.
    made.globals["ui"] = made.get_template("macros.html").module
    return made


def _answer(text: str, status: int = 200, csp: str = CSP) -> HTMLResponse:
    return HTMLResponse(text, status, headers={"Content-Security-Policy": csp})


def _around(prefix: str) -> Mapping[str, Any]:
    return {
        "prefix": prefix,
        "home": f"{prefix}{PAGES}",
        "assets": addresses(prefix),
    }


def _here(request: Request, prefix: str) -> str:
    """The path and query of this page, to come back to, without what was done."""
    query = [(name, value) for name, value in request.query_params.multi_items() if name != "did"]
    path = request.url.path.removeprefix(prefix)
    return f"{prefix}{path}{f'?{urlencode(query)}' if query else ''}"


def _when(time: datetime | None, now: datetime) -> Markup:
    """A time in the past, as how long ago it was."""
    if time is None:
        return Markup("&ndash;")
    ago = now - time
    text = "just now" if ago.total_seconds() < 1 else f"{length(ago)} ago"
    return Markup('<time datetime="{}" title="{}" data-ago>{}</time>').format(
        time.isoformat(), utc(time), text
    )


def _clock(time: datetime, now: datetime) -> str:
    """A time of today without its date, and any other with it."""
    return f"{time:%T} UTC" if time.date() == now.date() else utc(time)


def _until(time: datetime, now: datetime) -> Markup:
    """A time in the future, as how long it is until then."""
    left = time - now
    text = f"in {length(left)}" if left.total_seconds() > 0 else "now"
    return Markup('<time datetime="{}" title="{}" data-until>{}</time>').format(
        time.isoformat(), utc(time), text
    )


def without_command(text: str) -> str:
    """Return a text without the command that does what the page has a button for."""
    return _COMMAND.sub("", text)


def _why(summary: str) -> str:
    """Why something is paused, beside its status: without saying again that it is.

    It begins with the name of a service, which keeps its case.
    """
    text = without_command(summary)
    return text.removeprefix("paused: ") if text.startswith("paused: ") else sentence(text)


def _rate(per_second: float) -> str:
    """How many records are done in a time."""
    return f"{per_second:.1f}/s" if per_second >= 0.1 else f"{60 * per_second:.1f}/min"


def _shorter(text: str) -> str:
    """As much of a text as fits a table; its end is said elsewhere."""
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}\N{HORIZONTAL ELLIPSIS}"


def _actor(name: str) -> str | Markup:
    """Who did something; of a Dagster run, the beginning of its id, as Dagster shows it."""
    if not _DAGSTER_RUN.fullmatch(name):
        return name
    return Markup('<span title="{}">run <code>{}</code></span>').format(name, name[:8])


def _short_ids(text: str) -> str:
    """A text with the ids of Dagster runs as Dagster shows them."""
    return _DAGSTER_RUN.sub(lambda each: each[0][:8], text)


def _breakable(name: str) -> Markup:
    """A name that may be broken behind its separators, where a column is narrow."""
    return Markup("<wbr>").join(re.split(r"(?<=[_/.-])", name))


def _share(part: float, whole: float) -> str:
    """A share in percent, for people: 0.4 % is not 0 %."""
    if not whole:
        return "none"
    percent = 100 * part / whole
    if 0 < percent < 0.05:
        return "<0.1 %"
    return f"{percent:.1f} %" if 0 < percent < 10 else f"{percent:.0f} %"


def _spark_base(calls: Sequence[Calls]) -> str:
    """The minutes with calls, as the path of a sparkline 120 wide, the newest on the right."""
    return "".join(f"M{118 - 2 * each.minutes_ago} 22.5h1.5" for each in calls)


def _spark_failures(calls: Sequence[Calls]) -> str:
    """The share of failed calls of each minute with some, as the path of a sparkline 24 high."""
    return "".join(
        f"M{118.75 - 2 * each.minutes_ago} 23.5V{22 - 21 * each.failure_rate:.1f}"
        for each in calls
        if each.failed
    )
