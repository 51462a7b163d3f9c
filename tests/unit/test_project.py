"""The project that a command loads is the one that `dg` and `dagster` would load there."""

import os
import time
from pathlib import Path

import pytest

from dagster_tidegate.dagster_api.project import (
    CodeOptions,
    LocationSource,
    ProjectError,
    find,
    read_environment,
)

NOTHING = CodeOptions()
DG_PROJECT = '[tool.dg]\ndirectory_type = "project"\n[tool.dg.project]\nroot_module = "shop"\n'


def dg_project(directory: Path, more: str = "") -> Path:
    (directory / "src" / "shop").mkdir(parents=True)
    (directory / "pyproject.toml").write_text(DG_PROJECT + more)
    return directory


def only(directory: Path, options: CodeOptions = NOTHING) -> LocationSource:
    [location] = find(options, directory).locations
    return location


def test_a_dg_project_is_named_as_dg_does_and_known_as_dagster_dev_does(tmp_path: Path) -> None:
    root = dg_project(tmp_path / "storefront")
    location = only(root)
    assert (location.target, location.directory) == ("shop.definitions", root / "src")
    assert (location.name, location.aliases) == ("storefront", ("shop.definitions",))


def test_it_is_found_from_below(tmp_path: Path) -> None:
    root = dg_project(tmp_path / "storefront")
    assert only(root / "src" / "shop") == only(root)


def test_a_code_location_name_is_its_only_name(tmp_path: Path) -> None:
    root = dg_project(tmp_path, 'code_location_name = "prod"\n')
    assert (only(root).name, only(root).aliases) == ("prod", ())


def test_other_modules_of_a_dg_project(tmp_path: Path) -> None:
    root = dg_project(tmp_path / "a", 'code_location_target_module = "shop.code"\n')
    assert only(root).target == "shop.code"
    root = dg_project(tmp_path / "b", "autoload_defs = true\n")
    assert (only(root).target, only(root).autoload) == ("shop.defs", True)


def test_a_dg_workspace_has_all_its_projects_each_with_its_own_python(tmp_path: Path) -> None:
    dg_project(tmp_path / "one")
    dg_project(tmp_path / "two")
    python = tmp_path / "two" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    (tmp_path / "dg.toml").write_text(
        'directory_type = "workspace"\n[workspace]\n[[workspace.projects]]\npath = "one"\n'
        '[[workspace.projects]]\npath = "two"\n'
    )
    found = find(NOTHING, tmp_path).locations
    assert [(each.name, each.python) for each in found] == [("one", None), ("two", python)]
    assert only(tmp_path / "one").name == "one"


def test_the_older_block_of_pyproject(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        '[tool.dagster]\nmodule_name = "shop"\ncode_location_name = "prod"\n'
    )
    assert (only(tmp_path).target, only(tmp_path).name) == ("shop", "prod")


def test_a_workspace_file_counts_where_pyproject_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "workspace.yaml").touch()
    (tmp_path / "pyproject.toml").write_text("[tool.ruff]\n")
    (tmp_path / "below").mkdir()
    found = find(NOTHING, tmp_path / "below")
    assert found.workspaces == (tmp_path / "workspace.yaml",)
    assert found.options == f"-w {tmp_path / 'workspace.yaml'}"


def test_the_command_line_wins(tmp_path: Path) -> None:
    root = dg_project(tmp_path)
    location = only(root, CodeOptions(modules=["other"]))
    assert (location.target, location.directory, location.name) == ("other", root, None)
    file = tmp_path / "defs.py"
    file.touch()
    assert only(root, CodeOptions(files=[file])).is_file
    assert find(CodeOptions(files=[file]), root).options == f"-f {file}"


def test_what_is_not_there_or_invalid_is_said(tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match=r"no Dagster project in .*--module-name MODULE"):
        find(NOTHING, tmp_path)
    with pytest.raises(ProjectError, match=r"no workspace file .*gone\.yaml"):
        find(CodeOptions(workspaces=[tmp_path / "gone.yaml"]), tmp_path)
    with pytest.raises(ProjectError, match="use only one of"):
        find(CodeOptions(modules=["a"], files=[tmp_path]), tmp_path)
    (tmp_path / "pyproject.toml").write_text("[tool.dg")
    with pytest.raises(ProjectError, match=r"pyproject\.toml can't be read"):
        find(NOTHING, tmp_path)


@pytest.fixture
def no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", "")
    monkeypatch.setenv("SHOP_KEY", "of the shell")


@pytest.mark.usefixtures("no_home")
def test_the_home_of_dg_dev_is_found_while_it_runs(tmp_path: Path) -> None:
    root = dg_project(tmp_path)
    read_environment(root)
    assert os.environ["DAGSTER_HOME"] == ""
    (root / ".tmp_dagster_home_x1").mkdir()
    read_environment(root / "src")
    assert os.environ["DAGSTER_HOME"] == str(root / ".tmp_dagster_home_x1")


@pytest.mark.usefixtures("no_home")
def test_of_two_homes_none_is_guessed(tmp_path: Path) -> None:
    root = dg_project(tmp_path)
    for name in ("x1", "x2"):
        (root / f".tmp_dagster_home_{name}").mkdir()
    with pytest.raises(ProjectError, match=r"_x1, .*_x2.*delete those of runs that have ended"):
        read_environment(root)


@pytest.mark.usefixtures("no_home")
def test_what_an_earlier_dg_dev_left_does_not_count(tmp_path: Path) -> None:
    root = dg_project(tmp_path)
    for name, age_s in (("x1", 3600), ("x2", 5)):
        (root / f".tmp_dagster_home_{name}").mkdir()
        file = root / f".tmp_dagster_home_{name}" / "tidegate.db"
        file.touch()
        at = time.time() - age_s
        os.utime(file, (at, at))
    read_environment(root)
    assert os.environ["DAGSTER_HOME"].endswith("_x2")


@pytest.mark.usefixtures("no_home")
def test_the_projects_env_file_is_read_as_dagster_reads_it(tmp_path: Path) -> None:
    root = dg_project(tmp_path)
    (root / ".env").write_text(f"DAGSTER_HOME={tmp_path}\nSHOP_KEY=of the file\n")
    read_environment(root / "src")
    assert (os.environ["DAGSTER_HOME"], os.environ["SHOP_KEY"]) == (str(tmp_path), "of the file")
