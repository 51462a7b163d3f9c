"""Chaos: `python -m tests.chaos [--rounds N] [--seed S]`.

Plays rounds of a campaign run in which workers, the daemon and the database are killed and the
service fails, each at a random moment, and asks the service what arrived. The round with seed S
is played again by `--seed S --rounds 1`.
"""

import sys
import tempfile
import time
from pathlib import Path

from tests.chaos import seeds
from tests.chaos.plan import plan
from tests.chaos.rounds import Played, play
from tests.chaos.stage import stage


def tell(played: Played) -> None:
    """Print what became of a round."""
    seeds.tell(
        played.plan.seed,
        f"after {played.seconds:.0f} s, {played.attempts} attempts, {played.in_doubt} in doubt, "
        f"{played.repeated} sent again; {played.plan}",
        played.findings,
    )


def main() -> None:
    """Play the rounds; ends with 1 if something went wrong."""
    parser = seeds.parser(__doc__, rounds=200)
    parser.add_argument("--keep", type=Path, help="keep logs and databases in this new directory")
    arguments = parser.parse_args()
    began = time.monotonic()
    plans = [plan(seed) for seed in seeds.of(arguments)]
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
