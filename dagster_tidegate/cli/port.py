"""Ports, as the command line says them."""

import click


class Port(click.IntRange):
    """A TCP port.

    Args:
        free: Whether 0 may be said, which takes a free one.
    """

    name = "port"  # a refusal says "'abc' is not a valid port"

    def __init__(self, *, free: bool = False) -> None:
        super().__init__(0 if free else 1, 65535)
