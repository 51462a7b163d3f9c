"""The tutorial and the short how-tos, word for word: what they tell to write works."""

import re
from collections import Counter
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import dagster as dg
import pytest
from click.testing import CliRunner

import dagster_tidegate
from dagster_tidegate import BreakerResource, ServicePolicy
from dagster_tidegate.cli import main

DOCS = Path(__file__).parents[2] / "docs"
TUTORIAL = (DOCS / "tutorial.md").read_text()
SHORT = ("choose-policies", "stay-within-a-quota")


def file(name: str) -> str:
    """The file that the tutorial tells to write."""
    block = re.search(rf"Write `{re.escape(name)}`.*?```python\n(.*?)```", TUTORIAL, re.DOTALL)
    assert block, name
    return block[1]


def defined_by(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "tutorial"}
    exec(compile(code, "tutorial.md", "exec"), names)
    return names


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the tutorial, after `tidegate init`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TIDEGATE_STORE_URL", raising=False)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    assert "$ tidegate init --yes" in TUTORIAL
    assert CliRunner().invoke(main, ["init", "--yes"]).exit_code == 0
    return tmp_path


@pytest.fixture
def mailer() -> Iterator[str]:
    """The service; its files are in the directory of the test."""
    handler = defined_by(file("mailer.py"))["Mailer"]
    handler.log_message = lambda *_: None
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_the_outage_of_the_tutorial_loses_no_letter_and_sends_none_twice(
    folder: Path, mailer: str
) -> None:
    code = file("letters.py").replace("http://127.0.0.1:8999/", mailer)
    # The outage begins at the twentieth letter instead of by hand.
    code = code.replace(
        "    time.sleep(0.5)\n",
        '    if letter.endswith(" 20") and not Path("repaired").exists():\n'
        '        Path("broken").touch()\n',
    )
    letters = defined_by(f"from pathlib import Path\n{code}")
    defs: dg.Definitions = letters["defs"]
    job = defs.resolve_job_def("monthly_letter")
    with dg.DagsterInstance.get() as instance:

        def launched(month: str) -> dg.DagsterRun:
            done = job.execute_in_process(
                instance=instance, partition_key=month, raise_on_error=False
            )
            run = instance.get_run_by_id(done.run_id)
            assert run is not None
            return run

        paused = launched("january")
        assert paused.status is dg.DagsterRunStatus.CANCELED
        assert paused.tags["tidegate/state"] == "paused"
        assert len((folder / "sent.txt").read_text().splitlines()) == 20
        said = CliRunner().invoke(main, ["why", "mailer"])
        assert "mailer is open (503 x" in said.output

        (folder / "broken").unlink()
        (folder / "repaired").touch()
        breakers = defs.resources["breakers"] if defs.resources else None
        assert isinstance(breakers, BreakerResource)
        breakers.breaker("mailer").close()  # as a trial call does
        assert launched("january").status is dg.DagsterRunStatus.SUCCESS
        assert launched("february").status is dg.DagsterRunStatus.SUCCESS
    sent = Counter((folder / "sent.txt").read_text().splitlines())
    assert len(sent) == 120
    assert set(sent.values()) == {1}


@pytest.mark.parametrize("name", SHORT)
def test_the_policies_of_the_how_to_are_valid(name: str) -> None:
    blocks = re.findall(
        r"```python\n(.*?)```", (DOCS / "how-to" / f"{name}.md").read_text(), re.DOTALL
    )
    assert blocks
    for block in blocks:
        made = [each for value in defined_by(block).values() for each in _flat(value)]
        assert any(isinstance(each, ServicePolicy) for each in made)


def test_the_examples_of_the_page_about_limits_are_valid() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "limits.md").read_text(), re.DOTALL)
    assert blocks
    defined_by("\n".join(blocks))


def test_the_sensors_of_the_page_about_the_gate_make_definitions() -> None:
    @dg.op
    def nothing() -> None: ...

    @dg.job
    def newsletter() -> None:
        nothing()

    @dg.sensor(job=newsletter)
    def new_subscribers() -> None: ...

    section = (DOCS / "gate.md").read_text().partition("\n## The sensors one by one\n")[2]
    example = section.partition("```python\n")[2].partition("```")[0]
    imported = {name: getattr(dagster_tidegate, name) for name in dagster_tidegate.__all__}
    names: dict[str, Any] = {
        **imported, "dg": dg, "newsletter": newsletter, "new_subscribers": new_subscribers
    }  # fmt: skip
    exec(compile(example, "gate.md", "exec"), names)
    repository = names["defs"].get_repository_def()
    assert {each.name for each in repository.sensor_defs} == {
        "new_subscribers",
        "tidegate_pause",
        "tidegate_resume",
        "tidegate_breaker",
    }


def _flat(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]
