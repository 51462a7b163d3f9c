"""Options and arguments that several commands share, and the types of their values."""

import getpass
import os
import re
import socket
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import wraps
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from dagster_tidegate.dagster_api.project import CodeOptions
from dagster_tidegate.holds import Target, TargetKind, named
from dagster_tidegate.text import (
    MAX_ACTOR,
    MAX_DURATION,
    MAX_NAME,
    MAX_PART,
    MAX_REASON,
    checked,
    shown,
)

SERVICE, CAMPAIGN = TargetKind.SERVICE, TargetKind.CAMPAIGN
KINDS = {
    "service": TargetKind.SERVICE,
    "campaign": TargetKind.CAMPAIGN,
    "run": TargetKind.CAMPAIGN_RUN,
    "everything": TargetKind.EVERYTHING,
}
EXAMPLES = {"service": "instantly", "campaign": "outreach", "run": "outreach/leads-1"}
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
SOURCE = click.Path(dir_okay=False, resolve_path=True, path_type=Path)
"""A workspace or Python file. The commands check whether it exists: some work without one."""
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class Duration(click.ParamType):
    """A length of time such as `90s`, `30m`, `2h` or `1d`.

    Args:
        or_never: Whether `never` is allowed too; it becomes None.
    """

    name = "duration"

    def __init__(self, *, or_never: bool = False) -> None:
        self.or_never = or_never

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return a `timedelta`, or None for `never`."""
        if isinstance(value, timedelta):
            return value
        if self.or_never and value == "never":
            return None
        match = re.fullmatch(r"0*(\d+)([smhd])", value, re.ASCII)
        if match is None:
            self.fail(f"{value!r} is not a duration: use 90s, 30m, 2h or 1d", param, ctx)
        count = int(match[1][:10])  # more digits are too long, and could overflow
        if not 0 < count <= MAX_DURATION / timedelta(**{UNITS[match[2]]: 1}):
            limits = f"1s to {MAX_DURATION.days}d"
            self.fail(f"{value!r} is not {limits}: use 90s, 30m, 2h or 1d", param, ctx)
        return timedelta(**{UNITS[match[2]]: count})


class Moment(click.ParamType):
    """A time in ISO 8601 with its zone, such as `2026-03-01T18:00Z`."""

    name = "time"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        """Return the time in UTC."""
        if isinstance(value, datetime):
            return value
        problem = (
            f"{value!r} is not a time with time zone: use 2026-03-01T18:00Z or "
            "2026-03-01T18:00+01:00"
        )
        try:
            time = datetime.fromisoformat(value)
            if time.tzinfo is None:
                self.fail(problem, param, ctx)
            return time.astimezone(UTC)
        except (ValueError, OverflowError):  # UTC has no year 10,000
            self.fail(problem, param, ctx)


class Since(click.ParamType):
    """A time, or how long ago it was: `2026-03-01T18:00Z`, `2h`."""

    name = "time or duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return a `datetime` in UTC, or a `timedelta`."""
        kind = Duration() if re.fullmatch(r"\d+[a-z]", str(value)) else Moment()
        return value if isinstance(value, timedelta) else kind.convert(value, param, ctx)


class Words(click.ParamType):
    """Text on one line, without control characters and of bounded length.

    Args:
        what: What it is, for error messages.
    """

    name = "text"

    def __init__(self, what: str, longest: int) -> None:
        self.what = what
        self.longest = longest

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text."""
        try:
            return checked(value, self.what, self.longest)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Port(click.IntRange):
    """A TCP port; with `free`, also 0, which picks a free one."""

    name = "port"  # an error says "'abc' is not a valid port"

    def __init__(self, *, free: bool = False) -> None:
        super().__init__(0 if free else 1, 65535)


class ListingGroup(click.Group):
    """A group whose subcommand `list` is the default: `runs outreach` is `runs list outreach`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Insert `list` unless a subcommand or help is asked for."""
        if ctx.resilient_parsing:  # shell completion
            return super().parse_args(ctx, args)
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete subcommands, and what `list` takes."""
        items = super().shell_complete(ctx, incomplete)
        for parameter in self.commands["list"].params:
            if isinstance(parameter, click.Argument):
                items += parameter.shell_complete(ctx, incomplete)
        return items


def completing(
    *kinds: TargetKind,
) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Return a shell completion of the names of services and campaigns.

    Args:
        kinds: What may be named; if the command line names a kind, only names of that kind.
    """

    def complete(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
        from dagster_tidegate.cli.connections import explained, named_store
        from dagster_tidegate.store import breakers, campaigns

        kind = context.params.get("kind")
        wanted = [each for each in kinds if kind in (None, each)]
        names: list[str] = []
        with suppress(click.ClickException), explained():  # completion reports no errors
            store = named_store(context.params.get("url"), connections=1)
            with store.read() as conn:
                if SERVICE in wanted:
                    names += breakers.read(conn)
                if CAMPAIGN in wanted:
                    names += (each.name for each in campaigns.read(conn))
        return sorted(name for name in names if name.startswith(incomplete))

    return complete


def operator() -> str:
    """Return who runs the command, as `user@host`."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in many containers
        user = f"uid-{os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def together(*options: Decorator) -> Decorator:
    """Return several options as one decorator; help lists them in this order."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


NAME = Words("name", MAX_NAME)
"""The name of anything, runs of campaigns included."""
PART = Words("name", MAX_PART)
"""The name of a service, a campaign or a partition."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
yes_option = click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Show what would happen and change nothing."
)
url_option = click.option(
    "--url",
    help="SQLAlchemy URL of the state database. Default: TIDEGATE_STORE_URL, else tidegate.db in "
    "DAGSTER_HOME.",
)
actor_option = click.option(
    "--actor",
    default=operator,
    show_default="user@host",
    type=Words("actor", MAX_ACTOR),
    help="Who makes the change, for the audit log.",
)
reason_option = click.option(
    "--reason", required=True, type=Words("reason", MAX_REASON), help="Why, shown to everyone."
)
change_options = together(dry_run_option, actor_option, json_option, url_option)
"""The options of a command that changes something."""


_CODE_OPTIONS = together(
    click.option(
        "--workspace",
        "-w",
        type=SOURCE,
        multiple=True,
        help="A workspace file. Default: the dg project or workspace.yaml of this directory or "
        "the nearest above.",
    ),
    click.option("--module-name", "-m", multiple=True, help="A module."),
    click.option("--python-file", "-f", type=SOURCE, multiple=True, help="A Python file."),
    click.option(
        "--working-directory",
        "-d",
        type=click.Path(file_okay=False, resolve_path=True, path_type=Path),
        help="Where modules are imported from. Default: the current directory.",
    ),
)


def code_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that name the code to load; the command gets them as `code`."""

    @wraps(command)
    def run(
        *args: Any,
        workspace: tuple[Path, ...],
        module_name: tuple[str, ...],
        python_file: tuple[Path, ...],
        working_directory: Path | None,
        **kwargs: Any,
    ) -> Any:
        code = CodeOptions(workspace, module_name, python_file, working_directory)
        return command(*args, code=code, **kwargs)

    return _CODE_OPTIONS(run)


def limit_option(what: str, *, default: int = 50, most: int = 100_000) -> Decorator:
    """Return the option `--limit`, with its help, its default and its maximum."""
    return click.option(
        "--limit", type=click.IntRange(1, most), default=default, show_default=True, help=what
    )


def since(now: datetime, value: datetime | timedelta | None) -> datetime | None:
    """Return the time that `--since` means, or None."""
    return now - value if isinstance(value, timedelta) else value


def ending_options(what: str) -> Decorator:
    """Return the options `--for` and `--until`; `what` begins their help."""
    return together(
        click.option("--for", "length", type=Duration(), help=f"{what} after: 30m, 2h, 1d."),
        click.option("--until", type=Moment(), help=f"{what} at this time: 2026-03-01T18:00Z."),
    )


def ending(now: datetime, length: timedelta | None, until: datetime | None) -> datetime | None:
    """Return the time that `--for` or `--until` means, or None."""
    return until if length is None else now + length


def require_one_ending(length: timedelta | None, until: datetime | None) -> None:
    """Refuse `--for` together with `--until`."""
    if length is not None and until is not None:
        raise click.UsageError("use --for or --until, not both")


target_arguments = together(
    click.argument("kind", type=click.Choice(list(KINDS))),
    click.argument("name", required=False, type=NAME, shell_complete=completing(SERVICE, CAMPAIGN)),
)
"""The arguments that name what to hold or release."""


def target(kind: str, name: str | None) -> Target:
    """Return the target that the command line names.

    Raises:
        click.UsageError: If nothing of this kind can have the name.
    """
    if not name and kind in EXAMPLES:
        raise click.UsageError(f"name the {kind}, for example: {kind} {EXAMPLES[kind]}")
    try:
        return named(KINDS[kind], name or "")
    except ValueError as error:
        raise click.UsageError(shown(str(error))) from error
