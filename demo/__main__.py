"""`python -m demo`: run this deployment, its sandbox, and the outage drill."""

import click

from demo.drill.command import drill
from demo.sandbox.command import sandbox
from demo.up.command import up


@click.group()
def main() -> None:
    """Run this deployment, its sandbox, and the outage drill."""


main.add_command(up)
main.add_command(sandbox)
main.add_command(drill)

if __name__ == "__main__":
    main(prog_name="python -m demo")
