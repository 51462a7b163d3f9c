"""The wheel, installed where nothing of this repository is."""

import ast
import re
import sys
import tomllib
import zipfile
from importlib import import_module
from importlib.metadata import distributions, packages_distributions
from pathlib import Path

import pytest
from click.testing import CliRunner
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from dagster_tidegate.breaker.profiles import NAMES as PROFILES
from dagster_tidegate.cli import main
from tests.support.wheels import build, install, run

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def clean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin directory of an environment with the wheel, and the dependencies of this one."""
    return install(wheel, tmp_path_factory.mktemp("clean"))


def test_the_wheel_has_one_top_level_name_and_is_typed(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"dagster_tidegate"}
    assert "dagster_tidegate/py.typed" in names
    for profile in PROFILES:
        assert f"dagster_tidegate/breaker/profiles/{profile}.toml" in names
    assert "dagster_tidegate/control/runbooks.md" in names
    pages = ROOT / "dagster_tidegate" / "web" / "pages"
    data = [*(pages / "templates").iterdir(), *(pages / "static").iterdir()]
    assert {str(path.relative_to(ROOT)) for path in data} <= set(names)


def test_the_wheel_has_the_version_of_the_project(wheel: Path, clean: Path, tmp_path: Path):
    assert wheel.name.split("-")[1] == PROJECT["version"]
    print_version = "import dagster_tidegate; print(dagster_tidegate.__version__)"
    assert run(clean / "python", "-c", print_version, cwd=tmp_path).strip() == PROJECT["version"]


def test_the_wheel_works_by_itself(clean: Path, tmp_path: Path):
    print_home = "import dagster_tidegate; print(dagster_tidegate.__file__)"
    home = run(clean / "python", "-c", print_home, cwd=tmp_path)
    assert Path(home.strip()).is_relative_to(clean.parent)
    url = f"sqlite:///{tmp_path / 'tidegate.db'}"
    assert "is at" in run(clean / "tidegate", "store", "upgrade", "--url", url, cwd=tmp_path)
    assert "alert trip" in run(clean / "tidegate", "runbook", "trip", cwd=tmp_path)


def test_a_bare_project_loads_with_the_wheel(clean: Path, tmp_path: Path):
    readme = (ROOT / "README.md").read_text()
    [example] = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    (tmp_path / "bare.py").write_text(example)
    load = (
        "import bare; repository = bare.defs.get_repository_def()\n"
        "print(sorted(each.name for each in repository.sensor_defs))\n"
        "print(repository.has_job('newsletter'))"
    )
    said = run(clean / "python", "-c", load, cwd=tmp_path).splitlines()
    assert said[-2:] == ["['tidegate_breaker', 'tidegate_pause', 'tidegate_resume']", "True"]


def test_help_imports_neither_dagster_nor_the_database(clean: Path, tmp_path: Path):
    code = (
        "import sys\n"
        "from dagster_tidegate.cli import main\n"
        "main(['--help'], standalone_mode=False)\n"
        "print(sorted({'dagster', 'sqlalchemy', 'pydantic', 'rich'} & sys.modules.keys()))"
    )
    assert run(clean / "python", "-c", code, cwd=tmp_path).splitlines()[-1] == "[]"


EXTRAS = {
    "apprise": "alerts",
    "dagster_webserver": "webserver",
    "opentelemetry": "otel",
    "psycopg": "postgres",
    "pytest": "who has tests to use dagster_tidegate.testing has it",
}
"""What is imported only where its extra is installed, or named in a message."""


def imports(path: Path) -> set[str]:
    """The top-level names that a module imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names.add(node.module.partition(".")[0])
    return names


def test_the_plain_install_has_everything_that_is_imported(wheel: Path):
    [metadata] = [
        zipfile.ZipFile(wheel).read(name).decode()
        for name in zipfile.ZipFile(wheel).namelist()
        if name.endswith(".dist-info/METADATA")
    ]
    requirements = [
        Requirement(line.removeprefix("Requires-Dist: "))
        for line in metadata.splitlines()
        if line.startswith("Requires-Dist: ")
    ]
    core = {canonicalize_name(each.name) for each in requirements if each.marker is None}
    core |= {"dagster-shared"}  # a part of Dagster
    named = set().union(*(imports(path) for path in (ROOT / "dagster_tidegate").rglob("*.py")))
    named -= {*sys.stdlib_module_names, "dagster_tidegate", *EXTRAS}
    providers = packages_distributions()
    missing = {
        name
        for name in named
        if not core & {canonicalize_name(each) for each in providers.get(name, ())}
    }
    assert missing == set()


def test_what_is_pinned_installs_on_the_oldest_python_that_is_claimed():
    [oldest] = re.findall(r">=([\d.]+)", PROJECT["requires-python"])
    pinned = re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    required = {
        canonicalize_name(each.name): SpecifierSet(each.metadata["Requires-Python"] or "")
        for each in distributions()
    }
    newer = {
        name: str(required[name])
        for name in map(canonicalize_name, pinned)
        if name in required and oldest not in required[name]
    }
    assert newer == {}


def test_serve_without_dagsters_ui_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "workspace.yaml").write_text("load_from: []\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(import_module("dagster_tidegate.cli.serve"), "find_spec", lambda _: None)
    result = CliRunner().invoke(main, ["serve"])
    assert result.exit_code == 1
    assert "pip install dagster-webserver, or use --api-only" in result.output
