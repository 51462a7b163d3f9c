"""docs/api.md has every endpoint and every error code, and none that does not exist."""

import re
from pathlib import Path

from dagster_tidegate.web.api.app import PREFIX
from dagster_tidegate.web.api.problems import Code, ProblemDetails
from tests.integration.api import document

DOCS = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
DOCUMENT = document()


def test_every_endpoint_is_documented_and_no_other() -> None:
    offered = {
        f"{method.upper()} {path.removeprefix(PREFIX)}"
        for path, operations in DOCUMENT["paths"].items()
        for method in operations
        if path.startswith(PREFIX)
    }
    assert offered == set(re.findall(r"^\| `([A-Z]+ /[^`]*)` \| \w", DOCS, re.MULTILINE))


def test_every_error_code_is_documented_with_its_status_and_no_other() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| \w", DOCS, re.MULTILINE)
    assert {code: int(status) for code, status in rows} == {str(code): code.status for code in Code}


def test_the_example_of_a_problem_is_one() -> None:
    [example] = re.findall(r"```json\n(.*?)```", DOCS, re.DOTALL)
    problem = ProblemDetails.model_validate_json(example)
    assert (problem.code.status, problem.code.summary) == (problem.status, problem.title)


def test_every_operation_says_what_it_does_and_what_it_refuses() -> None:
    for path, operations in DOCUMENT["paths"].items():
        for method, operation in operations.items():
            name = f"{method} {path}"
            assert operation["description"], name
            assert operation["tags"], name
            assert {"401", "403", "422", "500"} <= set(operation["responses"]), name


def test_the_document_is_openapi_3_1_and_complete() -> None:
    assert DOCUMENT["openapi"].startswith("3.1")
    referred = set(re.findall(r"#/components/schemas/([\w-]+)", str(DOCUMENT)))
    assert referred == set(DOCUMENT["components"]["schemas"])
