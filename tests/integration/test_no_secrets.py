"""No command, log or answer has the password of the store, or a token."""

import logging
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from dagster_tidegate.cli import main
from dagster_tidegate.settings import ServeSettings
from dagster_tidegate.store.database import Store
from tests.integration.served import MAX_S

PASSWORD = "hunter2"
URLS = [
    f"postgresql://tide:{PASSWORD}@127.0.0.1:1/tide",  # nobody listens
    f"postgresql+psycopg://tide:{PASSWORD}@127.0.0.1:1/tide?connect_timeout=x",
    f"postgresql://tide:{PASSWORD}@127.0.0.1:1/tide?nonsense=1",
    f"postgresql://tide:{PASSWORD}@127.0.0.1:port/tide",
    f"postgresql://tide:{PASSWORD}@[::1/tide",
    f"postgresql://tide:p@ss:{PASSWORD}@127.0.0.1:1/tide",
    f"postgresql://tide:p@{PASSWORD}@127.0.0.1:{PASSWORD}/tide",
    f"postgresql://tide@127.0.0.1:1/tide?password={PASSWORD}",
    f"postgresql://tide:{PASSWORD}@no-such-host.invalid/tide",
    f"postgresql+nodriver://tide:{PASSWORD}@127.0.0.1/tide",
    f"mysql://tide:{PASSWORD}@127.0.0.1/tide",
    f"nothing://tide:{PASSWORD}@127.0.0.1/tide",
    f"tide:{PASSWORD}@127.0.0.1",
    f"tide:{PASSWORD}",
]
COMMANDS = [
    ["status"],
    ["store", "upgrade"],
    ["store", "current"],
    ["tokens", "list"],
    ["doctor"],
    ["hold", "everything", "--reason", "tests"],
    ["serve", "--api-only", "--port", "0"],
]


@pytest.mark.parametrize("url", URLS)
def test_a_store_that_can_not_be_used_is_not_told_with_its_password(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for command in COMMANDS:
        for arguments, variable in (([*command, "--url", url], None), (command, url)):
            if variable is None:
                monkeypatch.delenv("TIDEGATE_STORE_URL", raising=False)
            else:
                monkeypatch.setenv("TIDEGATE_STORE_URL", variable)
            result = CliRunner().invoke(main, arguments)
            assert result.exit_code != 0
            assert isinstance(result.exception, SystemExit), result.exception
            assert result.output.strip()
            assert PASSWORD not in result.output
    monkeypatch.setenv("TIDEGATE_STORE_URL", url)
    assert PASSWORD not in CliRunner().invoke(main, ["config"]).output
    assert PASSWORD not in caplog.text


@pytest.mark.parametrize("password", [f"p@s:{PASSWORD}", f"p@{PASSWORD}"])
def test_a_url_that_can_not_be_read_is_told_with_what_to_do(password: str) -> None:
    result = CliRunner().invoke(main, ["status", "--url", f"postgresql://t:{password}@h:1/db"])
    assert result.output.startswith("Error: the store's URL is invalid: percent-encode")
    assert PASSWORD not in result.output


def test_a_file_that_can_not_be_opened_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing" / "tidegate.db"
    result = CliRunner().invoke(main, ["status", "--url", f"sqlite:///{missing}"])
    assert result.exit_code == 1
    assert f"unable to open database file: {missing}" in result.output


def test_a_store_shows_itself_without_its_password() -> None:
    store = Store(URLS[0])
    for shown in (repr(store.url), str(store.url), repr(store.engine), repr(store)):
        assert PASSWORD not in shown
    store.dispose()


def test_a_real_server_logs_no_secret(tmp_path: Path) -> None:
    """Whatever it is asked, with everything logged that can be."""
    environment = {**os.environ, "TIDEGATE_STORE_URL": f"sqlite:///{tmp_path / 'tidegate.db'}"}
    environment["DAGSTER_HOME"] = str(tmp_path)
    tidegate = Path(sys.executable).with_name("tidegate")

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [tidegate, *arguments],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=MAX_S,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    run("store", "upgrade")
    secret = run("tokens", "create", "ana", "--role", "admin")
    log = tmp_path / "log"
    with log.open("w") as output:
        server = subprocess.Popen(
            [tidegate, "serve", "--api-only", "--port", "0", "--log-level", "debug"],
            env=environment,
            cwd=tmp_path,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + MAX_S
        while (told := re.search(r"^serving (\S+),", log.read_text(), re.MULTILINE)) is None:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        address = told[1]
        with httpx.Client(base_url=address, trust_env=False, timeout=MAX_S) as client:
            bearer = {"Authorization": f"Bearer {secret}"}
            assert client.get("/api/v1/holds", headers=bearer).status_code == 200
            assert client.get("/api/v1/holds", params={"token": secret}).status_code == 400
            assert client.get(f"/api/v1/services/{secret}", headers=bearer).status_code == 400
            assert client.get("/api/v1/services/x", headers=bearer).status_code == 404
            wrong = {"Authorization": f"Bearer {secret[:-1]}"}
            assert client.get("/api/v1/holds", headers=wrong).status_code == 401
            origin = {"Origin": address}
            begun = client.post("/login", data={"token": secret}, headers=origin)
            assert begun.status_code == 303
            session = client.cookies["tidegate_session"]
            assert client.get("/api/v1/holds").status_code == 200
            client.post("/api/v1/holds", content=b"{", headers=origin)
            upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", **bearer}
            keyed = {"Sec-WebSocket-Key": "x" * 22 + "==", "Sec-WebSocket-Version": "13"}
            client.get("/graphql", headers={**upgrade, **keyed})
            client.post("/logout", headers=origin)
    finally:
        server.terminate()
        server.wait(MAX_S)
    written = log.read_text()
    assert "GET /api/v1/holds" in written  # it does log
    for found in (secret[4:24], session):
        assert found not in written


def test_settings_show_no_secret_when_they_are_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEGATE_SERVE_PORT", "3001")
    assert "3001" in repr(ServeSettings())
    secret = f"mailto://me:{PASSWORD}@example.org"
    monkeypatch.setenv("TIDEGATE_ALERT_URLS", secret)
    assert PASSWORD not in CliRunner().invoke(main, ["config"]).output
