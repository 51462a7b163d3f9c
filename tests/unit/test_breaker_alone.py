"""The breaker needs neither Dagster nor a database."""

import subprocess
import sys

ALONE = """
import sys

for package in ("dagster", "sqlalchemy", "alembic", "psycopg"):
    sys.modules[package] = None  # importing it raises ImportError

from dagster_tidegate import breaker

for name in breaker.__all__:
    getattr(breaker, name)

def fail():
    raise ConnectionError

fleet = breaker.Fleet(policies=[breaker.ServicePolicy(name="openai", consecutive_failures=1)])
openai = fleet.breaker("openai")
assert openai.call(len, "four") == 4
try:
    openai.call(fail)
except breaker.BreakerOpenError as error:
    print(error.reason)
"""


def test_it_works_without_dagster_and_without_sqlalchemy():
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "ConnectionError x1\n"), done.stderr
