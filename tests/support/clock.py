"""The clock that tests set is the one that users' tests have."""

from dagster_tidegate.testing import Clock as Clock
