"""Reports as Markdown that reads as plain text. Pure."""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from dagster_tidegate.control.report_models import (
    OutageOut,
    OutageReport,
    PausedRunOut,
    ServiceReport,
    ServiceSummary,
    Summary,
)
from dagster_tidegate.control.report_picture import Lane, drawing
from dagster_tidegate.statuses import BreakerState
from dagster_tidegate.text import length, plural, shown, utc, words

NUMBERS = ("outages", "minutes", "mean time to recovery", "longest", "opened by", "calls")
WIDTH = 60
"""Columns of the picture."""
_DRAWN = {BreakerState.OPEN: "█", BreakerState.HALF_OPEN: "▒", None: "░"}
_SPECIAL = str.maketrans({character: f"\\{character}" for character in "\\`*_[]<>|#"})


def summary_text(summary: Summary) -> str:
    """Return the outages of a period by service."""
    return "\n".join(
        [
            f"# Outages from {utc(summary.since)} to {utc(summary.until)}",
            "",
            *_table(("service", *NUMBERS), [_summary_row(each) for each in summary.services]),
            "",
        ]
    )


def service_text(report: ServiceReport) -> str:
    """Return the outages of a service in a period."""
    lines = [
        f"# Outages of {_text(report.summary.service)} from {utc(report.since)} to "
        f"{utc(report.until)}",
        "",
        *_table(NUMBERS, [_summary_row(report.summary)[1:]]),
        *_section(
            "By month",
            ("month", *NUMBERS),
            [(each.month, *_summary_row(each)[1:]) for each in report.months],
        ),
        "",
        *_table(
            ("id", "opened", "lasted", "opened by", "why"),
            [
                (each.id, each.opened_at, _lasted(each), each.cause or "by hand", each.reason)
                for each in report.outages
            ],
        ),
        "",
    ]
    return "\n".join(lines)


def outage_text(report: OutageReport) -> str:
    """Return the report of an outage."""
    return "\n".join([*_outage(report), ""])


def picture(report: OutageReport) -> Sequence[str]:
    """Return the outage on a time axis, a line for the breaker and one for each campaign."""
    drawn = drawing(report)
    step = (drawn.end - drawn.start) / WIDTH
    middles = [drawn.start + step * (column + 0.5) for column in range(WIDTH)]
    rows = [
        (lane.name, "".join(_character(lane, at, otherwise) for at in middles))
        for lane, otherwise in ((drawn.service, "─"), *((each, " ") for each in drawn.campaigns))
    ]
    width = max(len(shown(name)) for name, _ in rows)
    first, last = f"{drawn.start:%H:%M:%S}", f"{drawn.end:%H:%M:%S}"
    return [
        *(f"{shown(name):{width}}  {line}".rstrip() for name, line in rows),
        f"{'':{width}}  {first}{last:>{WIDTH - len(first)}}",
        f"{'':{width}}  █ open  ▒ half open  ░ runs paused",
    ]


def _character(lane: Lane, at: datetime, otherwise: str) -> str:
    states = (span.state for span in lane.spans if span.begin <= at < span.end)
    return _DRAWN.get(next(states, BreakerState.CLOSED), otherwise)


def _outage(report: OutageReport) -> Iterator[str]:
    yield f"# Outage of {_text(report.service)}, {utc(report.opened_at)}"
    yield ""
    yield f"- Why: {_text(report.reason or 'opened by hand')}" + (
        f" ({report.cause})" if report.cause else ""
    )
    if report.answer:
        yield f"- The service said: {_text(report.answer)}"
    yield f"- Lasted: {_lasted(report)}" + (
        f", {plural(report.failed_probes, 'failed trial call')}" if report.failed_probes else ""
    )
    if report.last_resumed_at is not None:
        whole = report.last_resumed_at - report.opened_at
        yield f"- The last paused run resumed {length(whole)} after the trip."
    yield f"- {_calls(report)}"
    records = report.records
    repeated = "not known" if records.repeated is None else str(records.repeated)
    yield (
        f"- Records: {records.delayed} delayed, {records.done_since} done since, {records.left} "
        f"left, {records.failed} failed, {records.lost} lost, {repeated} repeated"
    )
    if records.cut_off:
        yield f"- Runs cut off with records in flight: {records.cut_off}"
    yield from ("", "```text", *picture(report), "```")
    yield from _section(
        "Timeline",
        ("at", "breaker", "why"),
        [(each.at, words(each.state), each.reason) for each in report.timeline],
    )
    yield from _section(
        "Who did what",
        ("at", "who", "what", "why"),
        [(each.at, each.actor, each.what, each.reason) for each in report.actions],
    )
    yield from _section(
        "What was paused",
        ("campaign", "runs paused", "still paused", "queued meanwhile", "last resumed"),
        [
            (each.campaign, each.paused, each.still_paused, each.queued, each.last_resumed_at)
            for each in report.campaigns
        ],
    )
    yield from _section(
        "Runs",
        ("run", "paused", "for", "at", "now"),
        [
            (run.run, run.paused_at, _seconds(run.seconds), _progress(run), run.status)
            for run in report.runs
        ],
    )
    yield from _section(
        "Stopped in Dagster",
        ("what", "stopped", "restored"),
        [
            (
                each.name,
                each.stopped_at,
                f"{_cell(each.restored_at)} {words(each.outcome or 'not yet')}",
            )
            for each in report.stopped
        ],
    )
    yield from _section(
        "Missed schedule ticks",
        ("campaign", "schedule", "missed", "launched", "skipped", "failed", "waiting"),
        [
            (
                each.campaign,
                each.schedule,
                each.missed,
                each.launched,
                each.skipped,
                each.failed,
                each.waiting,
            )
            for each in report.ticks
        ],
    )
    yield from ("", "## What the store can't know", "")
    yield from (f"- {_text(note)}" for note in report.notes)


def _calls(report: OutageReport) -> str:
    calls = report.calls
    if not calls.before:
        return "Calls before the trip: not recorded"
    before = f"Calls before the trip: {calls.before}, {calls.failed_before} failed"
    return before if calls.spared is None else f"{before}; spared: about {calls.spared}"


def _summary_row(summary: ServiceSummary) -> tuple[object, ...]:
    return (
        summary.service + (" (open)" if summary.open else ""),
        summary.outages,
        f"{summary.minutes:g}",
        _seconds(summary.mttr_s),
        _seconds(summary.longest_s),
        ", ".join(f"{cause} x{count}" for cause, count in summary.causes.items()),
        ", ".join(f"{count:,} {kind}" for kind, count in summary.verdicts.items() if count),
    )


def _seconds(value: float | None) -> str:
    return "" if value is None else length(timedelta(seconds=value))


def _lasted(outage: OutageOut) -> str:
    lasted = _seconds(outage.seconds)
    return lasted if outage.closed_at is not None else f"{lasted} so far"


def _text(text: str) -> str:
    return shown(text).translate(_SPECIAL)


def _progress(run: PausedRunOut) -> str | None:
    if run.done is None:
        return None
    total = "?" if run.total is None else run.total
    return f"{run.done}/{total}"


def _cell(value: object) -> str:
    if value is None:
        return ""
    return utc(value) if isinstance(value, datetime) else _text(str(value))


def _section(title: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    if rows:
        yield from ("", f"## {title}", "", *_table(head, rows))


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> Sequence[str]:
    cells = [list(map(_cell, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        return f"| {' | '.join(padded)} |"

    return [line(head), line(["-" * width for width in widths]), *map(line, cells)]
