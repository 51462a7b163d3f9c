import dagster as dg
import pytest

from dagster_tidegate import Campaign


@dg.op
def send() -> None: ...


@dg.job
def outreach() -> None:
    send()


@pytest.mark.parametrize(
    ("owners", "says"),
    [
        ("ana", "use a list of names"),
        (["ana", ""], "is empty"),
        (["a\nb"], "without control characters"),
        (["x" * 129], "the limit is 128"),
    ],
)
def test_owners_that_no_token_can_have_are_refused(owners: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Campaign(job=outreach, owners=owners)


def test_owners_are_names_of_tokens() -> None:
    assert Campaign(job=outreach, owners=["ana", "the sales team"]).owners == [
        "ana",
        "the sales team",
    ]
