"""What an outage costs, with tidegate and with what people would use instead.

    python -m tests.benchmarks.outage [--json FILE] [--scale 0.25] [--only CONTENDER/SCENARIO]...

Eight workers send a letter to each of 40 leads, over HTTP, to a service of the sandbox that fails
when a quarter of them has been sent (or, for `poison`, from the start). All contenders play a
scenario at the same time, each with a sandbox of its own. All durations are multiplied by
`--scale`: outages, waits, resets, backoffs, intervals of Dagster's daemon, and how long people
take; not the latency of the service.

Contenders are tidegate, tidegate whose runs wait before they pause (`linger_s`) for as long as the
loops do, and Dagster alone (`RetryPolicy`, run retries), each with a real daemon and run processes,
and loops in worker processes (`loops`): the plain one, which tries again at once, and those of the
libraries that are installed: `pip install --group bench`.

A person repairs what only a person can repair, and then at once starts again what has failed. Else
a person notices a failure some time after the service is well, and starts what has failed again,
without the record that can't be processed.

- dead_calls: calls that the service failed, or slowed, because of the fault; with the calls of
  health probes. Counted by the service.
- failed_runs: runs, or worker processes, that ended as failed.
- manual_restarts: steps of a person: a run started again, `tidegate services repaired`.
- lost: leads that had not been sent when nothing was left that would have sent them by itself.
- left: leads that had not been sent in the end.
- duplicated: leads that were sent again after they had been sent. The service did not do it twice,
  since each letter has its idempotency key. Counted by the service.
- waiting_worker_s: how long workers were there, all added up, less what the letters take. In
  seconds of the scaled scenario.
- done_s: from the end of the fault (of `poison`, from its beginning) until the last lead was sent,
  in seconds; negative if it was sent before. Counted by the service.
- done_ratio: time from the first fault until the last lead was sent / the shortest possible: the
  time in which the service was dead, and then what the letters that were left take eight workers.
- wrong_verdicts: failed runs, where no run should fail, and calls in spite of an answer that says
  that they are useless (before the time that it named, or before a repair), beyond one per worker.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatch
from itertools import repeat
from pathlib import Path

from tests.benchmarks.outage.contenders import JOBS, Contender, contender, processes
from tests.benchmarks.outage.loops import LOOPS, MODULES, POSTGRES, SCALE, is_installed
from tests.benchmarks.outage.scenarios import Says, Scenario, scenarios
from tests.benchmarks.outage.service import LATENCY_S, LEADS, NAME, OPERATOR_S, WORKERS, lists
from tests.benchmarks.servers import databases

DEFAULT_SCALE = 0.25
BEFORE = 0.25
"""The share of the leads that are sent before the service fails."""
MAX_RESTARTS = 3
LIMIT_S = 900.0
START_S = 300.0
POLL_S = 0.1

Figures = dict[str, float | int]


class TookTooLong(Exception):
    """Something did not happen in time."""


class Play:
    """A contender in a scenario."""

    def __init__(self, contender: Contender, scenario: Scenario, scale: float) -> None:
        self.contender, self.scenario, self.scale = contender, scenario, scale
        self.leads = WORKERS * LEADS - (scenario.says is Says.ONE_RECORD)
        self.manual = 0
        self.lost: int | None = None
        self._changes = list(scenario.changes)
        self._began = self._done = 0.0
        self._over: float | None = None

    def run(self) -> Figures:
        """Play it, and return the figures."""
        contender, sandbox = self.contender, self.contender.sandbox
        sandbox.heal(NAME)
        sandbox.reset()
        self._wait(contender.has_settled, START_S, "the last scenario is over")
        contender.begin()
        if self.scenario.says is Says.ONE_RECORD:  # before its worker gets to it
            self._began = time.monotonic()
            self._is_over()
        contender.start(lists(self.scenario.name))
        before = self.leads * BEFORE
        self._wait(lambda: contender.arrived() >= before, START_S, "the campaign has begun")
        sent_before = contender.arrived()
        if self.scenario.says is not Says.ONE_RECORD:
            self._began = time.monotonic()
        limit_s = LIMIT_S * self.scale + START_S
        self._wait(self._is_over, limit_s, "the fault is over")
        self._wait(self._is_at_rest, limit_s, "everything has come to rest")
        self.lost = self._missing()
        for _ in range(MAX_RESTARTS):
            failed = contender.failed_lists()
            if not failed or not self._missing():
                break
            if self.scenario.says is not Says.REPAIR:
                time.sleep(OPERATOR_S * self.scale)
            contender.start(failed, without_poison=self.scenario.says is Says.ONE_RECORD)
            self.manual += len(failed)
            self._wait(self._is_at_rest, limit_s, "everything has come to rest again")
        return self._figures(sent_before)

    def _missing(self) -> int:
        return self.leads - min(self.leads, self.contender.arrived())

    def _is_over(self) -> bool:
        """Change the faults that are due. Returns whether there are no more."""
        self._note()
        while self._changes and time.monotonic() - self._began >= self._changes[0].at_s:
            fault = self._changes.pop(0).fault
            if fault is not None:
                self.contender.sandbox.place(NAME, fault)
                continue
            self.contender.sandbox.heal(NAME)
            if self.scenario.says is Says.REPAIR:
                self.manual += self.contender.repaired()
        if not self._changes and self._over is None:
            self._over = time.monotonic()
        return self._over is not None

    def _is_at_rest(self) -> bool:
        self._note()
        return self.contender.is_at_rest()

    def _note(self) -> None:
        """Notice that the last lead was sent."""
        if not self._done and not self._missing():
            self._done = time.monotonic()

    def _wait(self, condition: Callable[[], bool], limit_s: float, what: str) -> None:
        until = time.monotonic() + limit_s
        while not condition():
            if time.monotonic() > until:
                name = f"{self.contender.name}/{self.scenario.name}"
                raise TookTooLong(
                    f"{name}: not within {limit_s:g} s: {what}\n{self.contender.describe()}"
                )
            time.sleep(POLL_S)

    def _figures(self, sent_before: int) -> Figures:
        for error, count in Counter(self.contender.errors()).items():
            print(f"  {self.contender.name}: {count} x {error[:100]}", flush=True)
        stats = self.contender.sandbox.stats()[NAME]
        failed = self.contender.failed_runs()
        dead = stats["failures_served"]
        left = self.leads - (0 if self.scenario.says is Says.ONE_RECORD else sent_before)
        letters_s = left * LATENCY_S / WORKERS
        done = self._done or time.monotonic()
        assert self._over is not None  # it has come to rest since
        useless = self.scenario.says in (Says.WHEN, Says.REPAIR)
        may_fail = self.scenario.says is Says.REPAIR
        ignored = max(0, dead - WORKERS) if useless else 0
        return {
            "dead_calls": dead + stats["health_calls"],
            "failed_runs": failed,
            "manual_restarts": self.manual,
            "lost": self.lost or 0,
            "left": self._missing(),
            "duplicated": stats["keys_repeated"],
            "waiting_worker_s": round(self.contender.worker_s() - self.leads * LATENCY_S, 1),
            "done_s": round(done - self._over, 1),
            "done_ratio": round((done - self._began) / (self.scenario.dead_s + letters_s), 2),
            "wrong_verdicts": (0 if may_fail else failed) + ignored,
        }


def played(contender: Contender, scenario: Scenario, scale: float) -> Figures | None:
    """Return the figures of a scenario, or None and what happened if it did not come to an end."""
    try:
        return Play(contender, scenario, scale).run()
    except TookTooLong as error:
        print(error, flush=True)
        return None


@contextmanager
def contenders(names: list[str], scale: float) -> Iterator[list[Contender]]:
    """Give contenders."""
    with tempfile.TemporaryDirectory(prefix="outage-") as folder, ExitStack() as stack:
        yield [stack.enter_context(contender(name, Path(folder), scale)) for name in names]


def table(results: dict[str, dict[str, Figures]]) -> str:
    """Return the results as a table, the contenders of a scenario below each other."""
    width = max(len(name) for name in results)
    lines = []
    for scenario in dict.fromkeys(name for result in results.values() for name in result):
        rows = {name: result[scenario] for name, result in results.items() if scenario in result}
        columns = list(next(iter(rows.values())))
        lines.append(f"\n{scenario:{width}} " + " ".join(f"{column:>16}" for column in columns))
        for name, figures in rows.items():
            cells = " ".join(f"{figures[column]:16g}" for column in columns)
            lines.append(f"{name:{width}} {cells}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="where to write the results")
    parser.add_argument("--scale", type=float, default=DEFAULT_SCALE, help="factor of all times")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="CONTENDER/SCENARIO",
        help="may have *, and may be repeated",
    )
    options = parser.parse_args()
    # Ended from outside, it takes the servers that it has started with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    os.environ[SCALE] = str(options.scale)
    wanted = options.only or ["*/*"]
    names = [name for name in [*JOBS, *LOOPS] if name in JOBS or is_installed(name)]
    if left_out := sorted({*JOBS, *LOOPS} - set(names)):
        print(f"not installed, and so left out: {', '.join(left_out)}")
    plays = [
        (scenario, {n for n in names if any(fnmatch(f"{n}/{scenario.name}", w) for w in wanted)})
        for scenario in scenarios(options.scale)
    ]
    playing = [name for name in names if any(name in who for _, who in plays)]
    if not playing:
        parser.error(f"nothing fits {', '.join(wanted)}; contenders: {', '.join(names)}")
    modules = [module for name in playing for module in MODULES.get(name, ())]
    processes.set_forkserver_preload(["tests.benchmarks.outage.loops", *modules])
    results: dict[str, dict[str, Figures]] = {name: {} for name in playing}
    with ExitStack() as stack:
        if "resilient-circuit" in playing:
            made = stack.enter_context(databases())
            url = made.make_empty().set(drivername="postgresql")
            os.environ[POSTGRES] = url.render_as_string(hide_password=False)
            os.environ["RC_DB_AUTO_CREATE"] = "1"
        started = stack.enter_context(contenders(playing, options.scale))
        for scenario, who in plays:
            chosen = [each for each in started if each.name in who]
            if not chosen:
                continue
            print(f"{time.strftime('%H:%M:%S')} {scenario.name}", flush=True)
            with ThreadPoolExecutor(len(chosen)) as pool:
                figures = pool.map(played, chosen, repeat(scenario), repeat(options.scale))
                for each, result in zip(chosen, figures, strict=False):
                    if result is not None:
                        results[each.name][scenario.name] = result
            if options.json:  # what there is, if a later scenario fails
                options.json.write_text(json.dumps(results, indent=1))
    print(table(results))


if __name__ == "__main__":
    main()
