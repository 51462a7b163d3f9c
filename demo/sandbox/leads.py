"""Fictitious people for lead files."""

import csv
import os
from collections.abc import Iterator
from pathlib import Path

FIRST_NAMES = (
    "Ada", "Zoë", "Łukasz", "Søren", "José", "Nguyễn", "Ólafur", "Chloé", "Jürgen", "Ayşe",
    "Dvořák", "Siân", "Iñaki", "Мария", "Γιώργος", "美咲", "서연", "عمر", "D'Arcy", "Anne-Marie",
)  # fmt: skip
LAST_NAMES = (
    "Lovelace", "Müller", "Kowalski", "Åberg", "García", "Trần", "Þórsson", "Lefèvre", "Weiß",
    "Öztürk", "Novák", "O'Brien", "Etxeberria", "Иванова", "Παπαδόπουλος", "佐藤", "김", "حداد",
    "de la Cruz", "van den Berg",
)  # fmt: skip
COMPANIES = (
    "Northwind", "Südbahn Logistik", "Fjord & Sons", "Café Lumière", "Kraków Dane", "Halcyon",
    "Blue Heron", "Tōkai Works", "Río Alto", "Meridian", "Quarry Lane", "Ostsee Energie",
    "Piedmont", "Sable", "Tidewater", "Umbra Foods", "Vela", "Wren Textiles", "Yarrow", "Zephyr",
)  # fmt: skip


def made_up_leads(count: int, *, seed: int = 0) -> Iterator[dict[str, str]]:
    """Yield deterministic leads with distinct, deliverable addresses.

    Args:
        count: How many.
        seed: Different seeds give disjoint sets of people.

    Yields:
        `email`, `first_name`, `last_name` and `company`.

    Raises:
        ValueError: If `count` or `seed` is negative.

    Example:
        >>> next(made_up_leads(1))["email"]
        'person0-0@northwind.example'
    """
    if count < 0 or seed < 0:
        raise ValueError(f"count is {count} and seed is {seed}; neither may be negative")
    for n in range(count):
        company = COMPANIES[(n + seed) % len(COMPANIES)]
        domain = "".join(c for c in company.lower() if c.isascii() and c.isalpha())
        yield {
            "email": f"person{seed}-{n}@{domain}.example",
            "first_name": FIRST_NAMES[(n * 7 + seed) % len(FIRST_NAMES)],
            "last_name": LAST_NAMES[(n // len(FIRST_NAMES) + n * 3 + seed) % len(LAST_NAMES)],
            "company": company,
        }


def write_lead_file(path: Path, count: int, *, seed: int = 0) -> None:
    """Write a lead file (CSV, UTF-8) of `made_up_leads`, atomically."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    with unfinished.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["email", "first_name", "last_name", "company"])
        writer.writeheader()
        writer.writerows(made_up_leads(count, seed=seed))
    os.replace(unfinished, path)
