"""Profiles: those that come with the package, and files that a person writes."""

import re
from pathlib import Path

import pytest

from dagster_tidegate.breaker.answers import Answer
from dagster_tidegate.breaker.errors import Pending
from dagster_tidegate.breaker.judge import judge
from dagster_tidegate.breaker.profiles import NAMES, Profile, load
from dagster_tidegate.breaker.verdicts import Scope, Verdict, VerdictKind

DOCS = (Path(__file__).parents[2] / "docs" / "answers.md").read_text()


def written(tmp_path: Path, text: str) -> Profile:
    file = tmp_path / "kimi.toml"
    file.write_text(text)
    return load(str(file))


@pytest.mark.parametrize("name", NAMES)
def test_each_profile_of_the_package_is_valid_and_documented(name: str):
    assert load(name).codes
    assert f"`{name}`" in DOCS


def test_a_person_adds_a_code_to_a_list_without_code(tmp_path: Path):
    answer = Answer(429, body={"error": {"type": "suspended_error"}})
    assert judge(answer, load("generic")).kind is VerdictKind.THROTTLED
    profile = written(tmp_path, 'extends = "generic"\n[codes]\ndenied = ["suspended_error"]\n')
    assert judge(answer, profile).kind is VerdictKind.DENIED
    assert judge(Answer(402), profile).kind is VerdictKind.DENIED  # as generic says


def test_ones_own_lists_come_before_those_of_the_profile_that_is_extended(tmp_path: Path):
    profile = written(
        tmp_path,
        'extends = "generic"\n[codes]\nthrottled = ["insufficient_quota"]\n'
        '[statuses]\nfailure = [404]\n[phrases]\npending = ["insufficient credits"]\n',
    )
    quota = Answer(429, body={"error": {"code": "insufficient_quota"}})
    assert judge(quota, profile).kind is VerdictKind.THROTTLED
    assert judge(Answer(404), profile).kind is VerdictKind.FAILURE
    words = Answer(400, body={"message": "Insufficient credits for this"})
    assert judge(words, profile).kind is VerdictKind.PENDING


def test_a_code_with_a_star_is_a_pattern_that_comes_after_all_lists(tmp_path: Path):
    profile = written(
        tmp_path, 'extends = "generic"\n[codes]\ndenied = ["seat_*_used", "*rate_limit*"]\n'
    )

    def kind(**error: str) -> VerdictKind:
        return judge(Answer(429, body={"error": error}), profile).kind

    assert kind(code="Seat.Month.Used") is VerdictKind.DENIED
    assert kind(code="my_seat_month_used") is VerdictKind.THROTTLED  # it begins otherwise
    assert kind(code="seat_month_used", type="rate_limit") is VerdictKind.THROTTLED
    assert kind(code="our_rate_limit_2") is VerdictKind.DENIED
    assert kind(code="seat month used") is VerdictKind.THROTTLED  # words are no code


def test_a_star_in_a_phrase_is_up_to_three_words(tmp_path: Path):
    profile = written(tmp_path, 'extends = "generic"\n[phrases]\ndenied = ["ip * shut"]\n')

    def verdict(words: str) -> Verdict:
        return judge(Answer(400, body={"message": words}), profile)

    for words in ("IP shut", "your IP address was shut", "the ip is now all shut."):
        assert verdict(words).kind is VerdictKind.DENIED
    assert verdict("your IP address was shut").reason == "ip address was shut"
    for words in ("the clip is shut", "the ip that you called is now shut"):
        assert verdict(words).kind is VerdictKind.REJECTED


def test_a_rule_needs_all_of_its_conditions(tmp_path: Path):
    profile = written(
        tmp_path,
        """
        extends = "generic"
        [[rules]]
        verdict = "denied"
        scope = "endpoint"
        reason = "beta"
        status = [400, 404]
        says = ["not in the beta"]
        field = { "error.kind" = "access" }
        header = { "x-region" = "eu" }
        """,
    )
    body = {"error": {"kind": "Access", "text": "Not in the beta"}}
    verdict = judge(Answer(404, {"X-Region": "EU-1"}, body), profile)
    assert (verdict.kind, verdict.scope, verdict.reason) == (
        VerdictKind.DENIED,
        Scope.ENDPOINT,
        "beta",
    )
    for other in (
        Answer(422, {"X-Region": "eu"}, body),
        Answer(404, {"X-Region": "us"}, body),
        Answer(404, {"X-Region": "eu"}, {"error": {"kind": "access"}}),
        Answer(404, {"X-Region": "eu"}, {"error": {"text": "not in the beta"}}),
    ):
        assert judge(other, profile).kind is VerdictKind.REJECTED


def test_a_profile_extends_one_beside_it(tmp_path: Path):
    (tmp_path / "base.toml").write_text('extends = "generic"\n[codes]\ndenied = ["base"]\n')
    profile = written(tmp_path, 'extends = "base.toml"\n')
    assert (profile.codes["base"], profile.codes["insufficient_quota"]) == ("denied", "denied")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[codes\n", "kimi.toml is not valid TOML"),
        ('[codes]\ndenid = ["x"]\n', "kimi.toml is invalid: codes.denid: Extra inputs"),
        ('[codes]\ndenied = "x"\n', "kimi.toml is invalid: codes.denied: .*valid list"),
        ("[statuses]\ndenied = [40]\n", "statuses.denied.0: .*greater than or equal to 100"),
        ('[phrases]\ndenied = ["no"]\n', "phrases.denied.0: .*at least 4 characters"),
        ('[codes]\ndenied = ["*no*"]\n', "codes.denied.0: .*at least four that are not"),
        ('[codes]\ndenied = ["no more*"]\n', "codes.denied.0: .*a pattern has letters"),
        ('[[rules]]\nverdict = "bad"\n', "rules.0.verdict: "),
        ('[[rules]]\nverdict = "denied"\n', "rules.0: .*would match every answer"),
        ('throttled_scope = "key"\n', "throttled_scope: "),
        (
            '[codes]\ndenied = ["DayQuotaError"]\nthrottled = ["day_quota"]\n',
            "codes: 'day_quota' is in denied and in throttled: remove one",
        ),
        ('extends = "opnai"\n', "there is no profile 'opnai': use one of anthropic, apollo"),
        ('extends = "kimi.toml"\n', "extends itself"),
        ('extends = "gone.toml"\n', "gone.toml can't be read: No such file"),
    ],
)
def test_a_wrong_profile_is_refused_with_what_is_wrong_and_where(
    tmp_path: Path, text: str, says: str
):
    with pytest.raises(ValueError, match=says):
        written(tmp_path, text)


def test_the_examples_of_the_docs_work(tmp_path: Path):
    profile = written(tmp_path, re.findall(r"```toml\n(.*?)```", DOCS, re.DOTALL)[0])
    unknown = {"result": {"state": "unknown"}, "final": False, "text": "Come back!"}
    answer = Answer(200, {"x-region": "eu"}, unknown)
    assert judge(answer, profile).kind is VerdictKind.PENDING
    names: dict = {}
    for example in re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL):
        exec(example, names)
    importing = Answer(409, {"X-Stage": "import"})
    assert names["judge"](importing).reason == "import is running"
    assert names["judge"](Answer(409)).kind is VerdictKind.REJECTED
    with pytest.raises(Pending):
        names["find"]({"state": "queued"})
    assert names["find"]({"id": 1}) == {"id": 1}
