"""The component in a `dg` project: what Dagster loads, and what `dg` itself says."""

import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path

import dagster as dg
import pytest
from dagster.components.core.package_entry import get_package_objects_in_module

ROOT = Path(__file__).parents[2]
DG = Path(sys.executable).with_name("dg")
PROJECT = """
[project]
name = "shop"
version = "0.1.0"
[tool.dg]
directory_type = "project"
[tool.dg.project]
root_module = "{module}"
"""
DEFINITIONS = """
from pathlib import Path
import dagster as dg

@dg.definitions
def defs():
    return dg.load_from_defs_folder(path_within_project=Path(__file__).parent)
"""
LETTERS = """
import dagster as dg

@dg.op(pool="mailer")
def send(): ...

@dg.job
def newsletter():
    send()

@dg.asset(pool="api_pool")
def enriched(): ...
"""
COMPONENT = """
type: dagster_tidegate.TidegateComponent
attributes:
  services:
    - mailer
    - name: enrich_api
      pools: [api_pool]
      consecutive_failures: 3
  campaigns:
    - job: {job}
      catch_up: latest
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request) -> Iterator[Path]:
    module = f"shop_{abs(hash(request.node.name))}"
    source = tmp_path / "src" / module
    for folder in ("defs/letters", "defs/platform/tidegate"):
        (source / folder).mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text(PROJECT.format(module=module))
    (source / "__init__.py").touch()
    (source / "definitions.py").write_text(DEFINITIONS)
    (source / "defs" / "__init__.py").touch()
    (source / "defs" / "letters" / "letters.py").write_text(LETTERS)
    monkeypatch.syspath_prepend(str(source.parent))
    yield source
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        del sys.modules[name]


def write_component(project: Path, job: str = "newsletter") -> None:
    path = project / "defs" / "platform" / "tidegate" / "defs.yaml"
    path.write_text(COMPONENT.format(job=job))


def loaded(project: Path) -> dg.Definitions:
    return import_module(f"{project.name}.definitions").defs()


def refusal(project: Path) -> str:
    """Why the project can't be loaded: Dagster's message, and its causes."""
    with pytest.raises(Exception, match=r"defs\.yaml") as raised:
        loaded(project)
    messages: list[str] = []
    error: BaseException | None = raised.value
    while error is not None:
        messages.append(str(error))
        error = error.__cause__ or error.__context__
    return "\n".join(messages)


def test_it_adds_the_gate_for_everything_in_the_defs_folder(project: Path) -> None:
    write_component(project)
    repository = loaded(project).get_repository_def()
    resume = repository.get_sensor_def("tidegate_resume")
    assert {target.job_name for target in resume.targets} == {"newsletter", "__ASSET_JOB"}
    assert len(repository.sensor_defs) == 3
    assert "breakers" in repository.get_top_level_resources()


def test_a_policy_is_read_as_in_code(project: Path) -> None:
    write_component(project)
    breakers = (loaded(project).resources or {})["breakers"]
    mailer, enrich = breakers.services
    assert (mailer.name, mailer.consecutive_failures) == ("mailer", 5)
    assert (enrich.pools, enrich.consecutive_failures) == (["api_pool"], 3)


def test_an_invalid_policy_is_refused_with_its_field(project: Path) -> None:
    write_component(project)
    path = project / "defs" / "platform" / "tidegate" / "defs.yaml"
    path.write_text(path.read_text().replace("consecutive_failures: 3", "consecutive_failures: 0"))
    assert "consecutive_failures" in refusal(project)


def test_a_campaign_without_a_job_is_refused(project: Path) -> None:
    write_component(project, job="newsleter")
    assert "there is no job 'newsleter'" in refusal(project)


def test_the_entry_point_names_a_module_with_the_component() -> None:
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    [name] = points["dagster_dg_cli.registry_modules"].values()
    objects = dict(get_package_objects_in_module(import_module(name)))
    assert list(objects) == ["TidegateComponent"]


def test_it_is_found_where_no_extra_is_installed() -> None:
    code = (
        "import sys\n"
        "for name in ('dagster_webserver', 'apprise', 'opentelemetry', 'psycopg', 'playwright'):\n"
        "    sys.modules[name] = None\n"
        "import dagster_tidegate\n"
        "for name in dir(dagster_tidegate): getattr(dagster_tidegate, name)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_dg_lists_scaffolds_and_checks_it(project: Path) -> None:
    def run(*arguments: str) -> str:
        return _dg(project.parents[1], arguments)

    assert "TidegateComponent" in run("list", "components")
    run("scaffold", "defs", "dagster_tidegate.TidegateComponent", "gate", "--services", "mailer")
    assert "- mailer" in (project / "defs" / "gate" / "defs.yaml").read_text()
    assert "All definitions loaded successfully" in run("check", "defs")


def _dg(directory: Path, arguments: Sequence[str]) -> str:
    done = subprocess.run(
        [DG, *arguments], cwd=directory, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
