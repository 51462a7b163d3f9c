"""Chaos: `python -m tests.chaos [--rounds N] [--seed S]`.

Plays rounds of a campaign run in which workers, the daemon and the database are killed and the
service fails, each at a random moment, and asks the service what arrived. The round with seed S
is played again by `--seed S --rounds 1`.
"""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.plan import plan
from tests.chaos.rounds import Played, play
from tests.chaos.stage import stage


def tell(played: Played) -> None:
    """Print what became of a round."""
    said = "wrong" if played.findings else "well"
    print(
        f"seed {played.plan.seed}: {said} after {played.seconds:.0f} s, {played.attempts} attempts,"
        f" {played.in_doubt} in doubt, {played.repeated} sent again; {played.plan}",
        flush=True,
    )
    for finding in played.findings:
        print(f"  {finding}", flush=True)


def main() -> None:
    """Play the rounds; ends with 1 if something went wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=200, help="how many rounds (default 200)")
    parser.add_argument("--seed", type=int, help="seed of the first; the others count on from it")
    parser.add_argument("--keep", type=Path, help="keep logs and databases in this new directory")
    arguments = parser.parse_args()
    first = random.randrange(10**6) if arguments.seed is None else arguments.seed
    print(f"rounds with the seeds {first} to {first + arguments.rounds - 1}", flush=True)
    began = time.monotonic()
    plans = [plan(seed) for seed in range(first, first + arguments.rounds)]
    done: list[Played] = []
    with tempfile.TemporaryDirectory(prefix="tidegate-chaos-") as folder:
        place = arguments.keep or Path(folder)
        for database in ("sqlite", "postgres"):
            if its := [each for each in plans if each.database == database]:
                with stage(place / database, database) as made:
                    for played in play(made, its):
                        tell(played)
                        done.append(played)
    blows = [blow.kind for played in done for blow in played.struck]
    wrong = sorted(played.plan.seed for played in done if played.findings)
    print(
        f"{len(done)} rounds in {time.monotonic() - began:.0f} s: "
        + ", ".join(f"{blows.count(kind)} x {kind}" for kind in sorted(set(blows)))
        + f"; {sum(p.attempts for p in done)} attempts, {sum(p.by_hand for p in done)} of them "
        f"asked for by hand, {sum(p.in_doubt for p in done)} records in "
        f"doubt, {sum(p.repeated for p in done)} sent again; wrong: {wrong or 'none'}"
    )
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
