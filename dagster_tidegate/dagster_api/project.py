"""Finds a Dagster project and its instance as `dg` and `dagster` do, without importing Dagster."""

import os
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WORKSPACE_FILES = ("workspace.yaml", "workspace.yml")
TEMPORARY_HOME = ".tmp_dagster_home_"
"""Prefix of the directory that `dg dev` uses while DAGSTER_HOME is not set."""
IN_USE_S = 60.0
LOCAL_HOME = Path(".tidegate", "home")
"""The DAGSTER_HOME that `python -m demo up` keeps in a project."""


class ProjectError(ValueError):
    """There is no project, or its files are invalid; the message says what to do."""


@dataclass(frozen=True)
class CodeOptions:
    """What a command line says about the code to load; nothing: the project around it.

    Attributes:
        files: Python files with definitions.
        directory: Where modules are imported from; None: the working directory.
    """

    workspaces: Sequence[Path] = ()
    modules: Sequence[str] = ()
    files: Sequence[Path] = ()
    directory: Path | None = None

    def __bool__(self) -> bool:
        return bool(self.workspaces or self.modules or self.files)


@dataclass(frozen=True, kw_only=True)
class LocationSource:
    """Where a code location is loaded from.

    Attributes:
        target: A module, or the path of a Python file.
        directory: The working directory of its code server.
        name: Its name; None: the one that Dagster gives it.
        aliases: Other names that it has when it is started by another command.
        python: Its Python interpreter; None: this one.
        autoload: Whether the module is a folder that is searched for definitions.
    """

    target: str
    directory: Path
    is_file: bool = False
    name: str | None = None
    aliases: tuple[str, ...] = ()
    python: Path | None = None
    autoload: bool = False


@dataclass(frozen=True)
class Project:
    """The code locations that a command loads.

    Attributes:
        options: The options by which Dagster's own commands find them.
    """

    options: str
    workspaces: tuple[Path, ...] = ()
    locations: tuple[LocationSource, ...] = ()


def find(options: CodeOptions, directory: Path) -> Project:
    """Return the project that a command line names, else the one around a directory.

    Raises:
        ProjectError: If there is none, or its files can't be read.
    """
    if options:
        return _named(options, options.directory or directory)
    for each in _upwards(directory):
        if (project := _in(each)) is not None:
            return project
    raise ProjectError(
        f"no Dagster project in {directory} or above: run this in the directory of a project "
        "(with workspace.yaml, or with [tool.dg] in pyproject.toml), or use --workspace FILE, "
        "--module-name MODULE or --python-file FILE"
    )


def workspace_file(project: Project) -> str:
    """Return the text of a workspace file with a project's locations."""
    import yaml  # other commands start faster without it

    entries = []
    for source in project.locations:
        kind, name = "python_module", "module_name"
        if source.autoload:
            kind = "autoload_defs_module"
        elif source.is_file:
            kind, name = "python_file", "relative_path"
        entry = {name: source.target, "working_directory": str(source.directory)}
        if source.name is not None:
            entry["location_name"] = source.name
        if source.python is not None:
            entry["executable_path"] = str(source.python)
        entries.append({kind: entry})
    return yaml.safe_dump({"load_from": entries})


def root(directory: Path) -> Path:
    """Return the nearest directory, from this one upwards, that has a project; else itself."""
    return next((each for each in _upwards(directory) if _has_project(each)), directory)


def home(directory: Path) -> Path | None:
    """Return the storage directory of an instance that runs here without DAGSTER_HOME.

    Raises:
        ProjectError: If there are several.
    """
    for each in {directory: None, root(directory): None}:
        if (each / LOCAL_HOME).is_dir():
            return each / LOCAL_HOME
        temporary = sorted(each.glob(f"{TEMPORARY_HOME}*"))
        if len(temporary) > 1:
            # A killed `dg dev` leaves its own behind, and so do runs that outlive it.
            in_use = [path for path in temporary if _is_in_use(path)]
            temporary = in_use if len(in_use) == 1 else temporary
        if len(temporary) > 1:
            names = ", ".join(path.name for path in temporary)
            raise ProjectError(
                f"{each} has the storage of several runs of dg dev ({names}): delete those of runs "
                "that have ended, or set DAGSTER_HOME to one of them"
            )
        if temporary:
            return temporary[0]
    return None


def _is_in_use(home: Path) -> bool:
    """Whether a gate has just written to the store in it, as it does every few seconds."""
    written = [path.stat().st_mtime for path in home.glob("tidegate.db*")]
    return bool(written) and time.time() - max(written) < IN_USE_S


def _upwards(directory: Path) -> Iterator[Path]:
    yield directory
    yield from directory.parents


def _has_project(directory: Path) -> bool:
    if any((directory / name).is_file() for name in WORKSPACE_FILES):
        return True
    dg, dagster = _blocks(directory)
    return bool(dg or dagster)


def _named(options: CodeOptions, directory: Path) -> Project:
    if sum(map(bool, (options.workspaces, options.modules, options.files))) > 1:
        raise ProjectError("use only one of --workspace, --module-name and --python-file")
    for path in (*options.workspaces, *options.files):
        if not path.is_file():
            kind = "workspace" if options.workspaces else "Python"
            raise ProjectError(
                f"no {kind} file {path}: name one with "
                f"{'--workspace' if options.workspaces else '--python-file'} FILE"
            )
    return Project(
        " ".join(
            [
                *(f"-w {path}" for path in options.workspaces),
                *(f"-m {module}" for module in options.modules),
                *(f"-f {path}" for path in options.files),
                *([f"-d {options.directory}"] if options.directory else []),
            ]
        ),
        tuple(options.workspaces),
        (
            *(LocationSource(target=each, directory=directory) for each in options.modules),
            *(
                LocationSource(target=str(each), is_file=True, directory=directory)
                for each in options.files
            ),
        ),
    )


def _in(directory: Path) -> Project | None:
    """Return the project of a directory, with the precedence that Dagster's commands have."""
    dg, dagster = _blocks(directory)
    if dg:
        return Project("", locations=tuple(_dg_locations(directory, dg)))
    if dagster:
        return Project("", locations=tuple(_dagster_locations(directory, dagster)))
    for name in WORKSPACE_FILES:
        if (directory / name).is_file():
            return Project(f"-w {directory / name}", workspaces=(directory / name,))
    return None


def _blocks(directory: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the configuration of `dg` and of `dagster` in a directory; empty if there is none."""
    tools = _read(directory / "pyproject.toml").get("tool", {})
    return _read(directory / "dg.toml") or tools.get("dg", {}), tools.get("dagster", {})


def _read(path: Path) -> Mapping[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise ProjectError(f"{path} can't be read: {error}") from error


def _dg_locations(directory: Path, dg: Mapping[str, Any]) -> Iterator[LocationSource]:
    if "project" in dg:
        yield _dg_location(directory, dg["project"], python=None)
    for spec in dg.get("workspace", {}).get("projects", ()):
        path = directory / spec["path"]
        block = _blocks(path)[0].get("project")
        if block is None:
            raise ProjectError(f"{path}, a project of {directory}, has no [tool.dg.project]")
        python = path / ".venv" / "bin" / "python"
        yield _dg_location(path, block, python=python if python.exists() else None)


def _dg_location(
    directory: Path, project: Mapping[str, Any], *, python: Path | None
) -> LocationSource:
    root_module = project.get("root_module")
    if not isinstance(root_module, str):
        raise ProjectError(f"[tool.dg.project] of {directory} has no root_module")
    target = project.get("code_location_target_module", f"{root_module}.definitions")
    autoload = bool(project.get("autoload_defs"))
    if autoload:
        target = project.get("defs_module", f"{root_module}.defs")
    package = root_module.partition(".")[0]
    source = directory / "src"
    name = project.get("code_location_name")
    return LocationSource(
        target=target,
        directory=source if (source / package).is_dir() else directory,
        name=name or directory.name,
        # `dagster dev` names it after the module.
        aliases=() if name else (target,),
        python=python,
        autoload=autoload,
    )


def _dagster_locations(directory: Path, dagster: Mapping[str, Any]) -> Iterator[LocationSource]:
    modules = [each["name"] for each in dagster.get("modules", ()) if each.get("type") == "module"]
    if "module_name" in dagster:
        modules = [dagster["module_name"]]
    for module in modules:
        yield LocationSource(
            target=module, directory=directory, name=dagster.get("code_location_name")
        )


def read_environment(directory: Path) -> None:
    """Set the variables of the project's `.env`, and DAGSTER_HOME to where `dg dev` keeps its data.

    Raises:
        ProjectError: If it is unclear which instance is meant.
    """
    from dotenv import dotenv_values  # comes with Dagster

    for path in {directory / ".env": None, root(directory) / ".env": None}:
        if path.is_file():
            os.environ |= {k: v for k, v in dotenv_values(path).items() if v is not None}
            break
    if not os.environ.get("DAGSTER_HOME") and (instance_home := home(directory)) is not None:
        os.environ["DAGSTER_HOME"] = str(instance_home.resolve())
