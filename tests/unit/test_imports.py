"""Which module may import which; the contracts are in pyproject.toml."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_arrows_between_modules_point_one_way():
    # In a process of its own: import-linter switches off the loggers that it finds.
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_sandbox_starts_without_importing_dagster_or_sqlalchemy():
    code = "import sys, demo.__main__, demo.sandbox.server; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    loaded = done.stdout.split()
    assert "demo.sandbox.server" in loaded
    assert not {"dagster", "sqlalchemy"} & set(loaded)
