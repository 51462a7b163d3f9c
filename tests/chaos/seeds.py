"""What the commands of chaos have in common: seeded rounds, and a line for each."""

import argparse
import random
from collections.abc import Sequence


def parser(doc: str | None, rounds: int) -> argparse.ArgumentParser:
    """Return the parser of a command that plays rounds."""
    made = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        "--rounds", type=int, default=rounds, help=f"how many rounds (default {rounds})"
    )
    made.add_argument("--seed", type=int, help="seed of the first; the others count on from it")
    return made


def of(arguments: argparse.Namespace) -> range:
    """Print and return the seeds of the rounds."""
    first = random.randrange(10**6) if arguments.seed is None else arguments.seed
    print(f"rounds with the seeds {first} to {first + arguments.rounds - 1}", flush=True)
    return range(first, first + arguments.rounds)


def tell(seed: int, text: str, findings: Sequence[str]) -> None:
    """Print what became of a round."""
    print(f"seed {seed}: {'wrong' if findings else 'well'} {text}", flush=True)
    for finding in findings:
        print(f"  {finding}", flush=True)
