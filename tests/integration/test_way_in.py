"""The how-to, word for word: its files make a project that loads, with the campaigns it names."""

import re
import sys
from collections.abc import Iterator
from difflib import unified_diff
from importlib import import_module
from pathlib import Path

import dagster as dg
import httpx
import pytest
import yaml

from dagster_tidegate.plugin.components import TidegateComponent

HOWTO = Path(__file__).parents[2] / "docs" / "how-to" / "add-to-a-project.md"
TEXT = HOWTO.read_text()
FILES = ("src/shop/defs/letters.py", "src/shop/definitions.py", "src/shop/defs/newsletter.py")


# What `create-dagster project shop` writes (1.13).
SCAFFOLD = """\
from pathlib import Path

from dagster import definitions, load_from_defs_folder


@definitions
def defs():
    return load_from_defs_folder(path_within_project=Path(__file__).parent)
"""


def block(after: str, kind: str = "python") -> str:
    """The first block of code after some text."""
    found = re.search(re.escape(after) + rf".*?```{kind}\n(.*?)```", TEXT, re.DOTALL)
    assert found, after
    return found[1]


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The project, as `create-dagster` makes it, with the files of the how-to."""
    (tmp_path / "src" / "shop" / "defs").mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "shop"\n'
        '[tool.dg]\ndirectory_type = "project"\n[tool.dg.project]\nroot_module = "shop"\n'
    )
    for name in ("__init__.py", "defs/__init__.py"):
        (tmp_path / "src" / "shop" / name).touch()
    for file in FILES:
        (tmp_path / file).write_text(block(f"`{file}`"))
    monkeypatch.syspath_prepend(str(tmp_path / "src"))
    monkeypatch.delenv("TIDEGATE_STORE_URL", raising=False)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "shop"]:
        del sys.modules[name]


def answer(*_: object, **__: object) -> httpx.Response:
    return httpx.Response(200, request=httpx.Request("GET", "http://127.0.0.1:8999/"))


def test_the_files_of_the_how_to_make_a_project_whose_assets_and_jobs_run(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(httpx, "get", answer)
    (shop / "src" / "shop" / "defs" / "by_hand.py").write_text(block("this does the same:"))
    defs = import_module("shop.definitions").defs()
    repository = defs.get_repository_def()
    [resume] = [each for each in repository.sensor_defs if each.name == "tidegate_resume"]
    assert {target.job_name for target in resume.targets} == {"__ASSET_JOB", "newsletter"}
    with dg.DagsterInstance.local_temp(str(shop)) as instance:
        everything = defs.resolve_implicit_global_asset_job_def()
        made = everything.execute_in_process(instance=instance)
        assert made.success
        assert made.output_for_node("letters")[0] == "sent to ada@example.org"
        assert made.output_for_node("letters_by_hand") == [200] * 6
        job = defs.resolve_job_def("newsletter")
        sent = job.execute_in_process(instance=instance, partition_key="2026-01-02")
        assert sent.output_for_node("send")[0] == "2026-01-02: sent to ada@example.org"
    assert (shop / "tidegate.db").is_file()


def test_beside_pools_and_loops_it_takes_five_lines_of_code() -> None:
    difference = unified_diff(
        SCAFFOLD.splitlines(), block("`src/shop/definitions.py`").splitlines(), n=0, lineterm=""
    )
    added = [line for line in difference if re.match(r"\+[^+]", line)]
    assert len(added) <= 5
    assert any("build_definitions(" in line for line in added)


def test_the_component_of_the_how_to_is_valid() -> None:
    document = yaml.safe_load(block("takes the fields of a policy", "yaml"))
    assert document["type"] == "dagster_tidegate.TidegateComponent"
    component = TidegateComponent.resolve_from_yaml(yaml.safe_dump(document["attributes"]))
    assert [service.name for service in component.services] == ["mailer", "enrich_api"]
    assert [campaign.job for campaign in component.campaigns] == ["newsletter"]
