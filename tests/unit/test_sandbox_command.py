from pathlib import Path

from click.testing import CliRunner

from demo.sandbox import answers, cases, server
from demo.sandbox import command as command


def test_the_command_knows_the_services_and_the_port():
    assert tuple(answers.SERVICES) == command.SERVICES
    assert cases.CASES == command.CASES
    assert server.DEFAULT_PORT == command.DEFAULT_PORT


def test_an_order_without_a_sandbox_says_how_to_start_one():
    result = CliRunner().invoke(command.sandbox, ["stats", "--url", "http://127.0.0.1:9"])
    assert result.exit_code == 1
    assert "python -m demo sandbox serve" in result.output


def test_an_order_that_makes_no_sense_is_a_usage_error():
    result = CliRunner().invoke(command.sandbox, ["fail", "openai", "--share", "2"])
    assert result.exit_code == 2
    assert "share: Input should be less than or equal to 1" in result.output


def test_leads_are_written_and_never_over_a_file_that_is_there(tmp_path: Path):
    path = tmp_path / "more.csv"
    written = CliRunner().invoke(command.sandbox, ["leads", str(path), "--count", "3"])
    assert written.output == f"{path}: 3 leads\n"
    assert len(path.read_text().splitlines()) == 4
    again = CliRunner().invoke(command.sandbox, ["leads", str(path)])
    assert again.exit_code == 1
    assert "already exists" in again.output
    nowhere = CliRunner().invoke(command.sandbox, ["leads", str(tmp_path / "no" / "x.csv")])
    assert nowhere.exit_code == 1
    assert "can't write" in nowhere.output
