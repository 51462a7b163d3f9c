"""The wheel of this repository, built and installed where nothing else of it is."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(*command: str | Path, cwd: Path, **env: str) -> str:
    """Run a command that can't import this repository, and return what it prints."""
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=cwd, env=outside | env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(folder: Path) -> Path:
    """Build the wheel."""
    pip_wheel = ("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation")
    run(sys.executable, *pip_wheel, "--wheel-dir", folder, ROOT, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


def install(wheel: Path, home: Path) -> Path:
    """Make an environment with the wheel and the dependencies of this one; return its `bin`."""
    venv.create(home, symlinks=True)
    site = sysconfig.get_path("purelib", "venv", {"base": str(home), "platbase": str(home)})
    pip_install = ("-m", "pip", "--python", home / "bin" / "python", "install", "--quiet")
    run(sys.executable, *pip_install, "--no-deps", wheel, cwd=home)
    installed = {path.name for path in Path(site).iterdir()}
    version = wheel.name.split("-")[1]
    assert installed == {"dagster_tidegate", f"dagster_tidegate-{version}.dist-info"}
    Path(site, "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return home / "bin"
