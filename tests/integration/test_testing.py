"""`dagster_tidegate.testing`, and the example in its how-to."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from dagster_tidegate.testing import Service, assert_each_once

HOW_TO = Path(__file__).parents[2] / "docs" / "how-to" / "test-your-campaigns.md"


def test_the_tests_of_the_how_to_pass(tmp_path: Path) -> None:
    examples = re.findall(r"```python\n(.*?)```", HOW_TO.read_text(), re.S)
    (tmp_path / "test_letters.py").write_text("\n\n".join(examples))
    (tmp_path / "conftest.py").write_text(
        'pytest_plugins = ["dagster_tidegate.testing.fixtures"]\n'
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    assert "4 passed" in done.stdout


def test_it_needs_no_pytest() -> None:
    code = "import sys, dagster_tidegate.testing as t; sys.exit('pytest' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_what_was_done_twice_or_is_missing_is_named() -> None:
    mailer = Service()
    for key in ("ada", "ada", "alan"):
        mailer(key)
    with pytest.raises(AssertionError, match="done more than once: 'ada'"):
        assert_each_once(mailer)
    mailer.done.pop(0)
    with pytest.raises(AssertionError, match=r"missing: ..'grace'"):
        assert_each_once(mailer, ["ada", "alan", "grace"])
