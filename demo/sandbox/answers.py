"""The responses of the simulated services: plausible and deterministic.

They resemble those of the real services. As with the test cards of a payment provider, the domain
of an address decides how it verifies: `invalid.example`, `disposable.example` and
`catchall.example` do what they say; every other domain is deliverable.
"""

import hashlib
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

BAD_DOMAINS = {
    "invalid.example": ("bad", "invalid", 6),
    "disposable.example": ("bad", "disposable", 5),
    "catchall.example": ("risky", "catch_all", 2),
}
TITLES = (
    "Head of Operations",
    "VP Sales",
    "Chief Data Officer",
    "Procurement Lead",
    "Engineering Manager",
    "Managing Director",
)
INDUSTRIES = ("logistics", "machinery", "software", "retail", "energy", "biotech")
NEWS = (
    "opened a second site",
    "is hiring for its data team",
    "announced a partnership with a regional supplier",
    "published its annual report",
    "moved its customer service to a new platform",
)
OPENERS = (
    "I read that {about}.",
    "Congratulations: {about}.",
    "Your team came up when we heard that {about}.",
)


@dataclass(frozen=True)
class Request:
    """The parts of a call that determine the response.

    Attributes:
        method: GET or POST.
        path: The path after the service's prefix, without a leading slash.
        params: The query parameters.
        body: The JSON body; an empty dict if there is none.
    """

    method: str
    path: str
    params: Mapping[str, str]
    body: Mapping[str, Any]


@dataclass(frozen=True)
class Answer:
    """A response.

    Attributes:
        body: The JSON body.
        subject: What the call was about; effects are counted per subject. An address; for
            instantly, `campaign/address`; for texts, a digest of the prompt.
        status: The HTTP status; 400 and above mean that the call took no effect.
    """

    body: dict[str, Any]
    subject: str = ""
    status: int = 200


def answer(service: str, request: Request) -> Answer:
    """Return the response of `service` to `request`.

    Raises:
        KeyError: If the sandbox has no such service.
    """
    endpoint, method, reply = SERVICES[service]
    if request.path.strip("/") != endpoint:
        return _refusal(404, f"{service} has no /{request.path}; it has /{endpoint}")
    if request.method != method:
        return _refusal(405, f"/{endpoint} of {service} takes {method}")
    return reply(request)


def _apollo(request: Request) -> Answer:
    email = request.body.get("email")
    if not _is_address(email):
        return _refusal(422, "email: an address is required")
    draw = _draw(request)
    local, domain = email.rsplit("@", 1)
    first = request.body.get("first_name") or local.split(".")[0].title()
    last = request.body.get("last_name") or local.split(".")[-1].title()
    company = request.body.get("organization_name") or domain.split(".")[0].title()
    return Answer(
        {
            "person": {
                "id": _id(draw),
                "first_name": first,
                "last_name": last,
                "title": draw.choice(TITLES),
                "email": email,
                "organization": {
                    "name": company,
                    "primary_domain": domain,
                    "industry": draw.choice(INDUSTRIES),
                    "estimated_num_employees": draw.randrange(10, 5000, 10),
                },
            }
        },
        email,
    )


def _millionverifier(request: Request) -> Answer:
    email = request.params.get("email", "")
    if not email:
        return _refusal(400, "email: missing from the query")
    domain = email.rsplit("@", 1)[-1].lower()
    good = ("good", "ok", 1) if _is_address(email) else BAD_DOMAINS["invalid.example"]
    quality, result, code = BAD_DOMAINS.get(domain, good)
    return Answer(
        {"email": email, "quality": quality, "result": result, "resultcode": code, "error": ""},
        email,
    )


def _perplexity(request: Request) -> Answer:
    prompt = _prompt(request)
    if prompt is None:
        return _refusal(400, "messages: at least one with a content is required")
    draw = _draw(request)
    about = prompt.strip().splitlines()[-1][:80]
    text = f"{about} {draw.choice(NEWS)}"
    return Answer(
        _completion(request, draw, text)
        | {"citations": [f"https://news.example/{draw.randrange(10**6):06}"]},
        _digest(prompt),
    )


def _openai(request: Request) -> Answer:
    prompt = _prompt(request)
    if prompt is None:
        return _refusal(400, "messages: at least one with a content is required")
    draw = _draw(request)
    about = prompt.strip().splitlines()[-1][:200]
    text = f"{draw.choice(OPENERS).format(about=about)} May I show you what we do in ten minutes?"
    return Answer(_completion(request, draw, text), _digest(prompt))


def _instantly(request: Request) -> Answer:
    email, campaign = request.body.get("email"), request.body.get("campaign")
    if not _is_address(email):
        return _refusal(400, "email: an address is required")
    if not isinstance(campaign, str) or not campaign:
        return _refusal(400, "campaign: missing")
    return Answer(
        {"id": _id(_draw(request)), "email": email, "campaign": campaign, "status": 1},
        f"{campaign}/{email}",
    )


SERVICES: dict[str, tuple[str, str, Callable[[Request], Answer]]] = {
    "apollo": ("api/v1/people/match", "POST", _apollo),
    "millionverifier": ("api/v3", "GET", _millionverifier),
    "perplexity": ("chat/completions", "POST", _perplexity),
    "openai": ("v1/chat/completions", "POST", _openai),
    "instantly": ("api/v2/leads", "POST", _instantly),
}
"""Each service: its endpoint, method and response."""


def _refusal(status: int, message: str) -> Answer:
    return Answer({"error": message}, status=status)


def _completion(request: Request, draw: random.Random, text: str) -> dict[str, Any]:
    return {
        "id": _id(draw),
        "model": request.body.get("model") or "sandbox",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}}],
        "usage": {"total_tokens": len(text) // 4},
    }


def _prompt(request: Request) -> str | None:
    messages = request.body.get("messages")
    if not isinstance(messages, list) or not messages or not isinstance(messages[-1], dict):
        return None
    content = messages[-1].get("content")
    return content if isinstance(content, str) and content.strip() else None


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _is_address(email: Any) -> TypeGuard[str]:
    return isinstance(email, str) and len(email) <= 254 and "@" in email.strip("@")


def _draw(request: Request) -> random.Random:
    seed = json.dumps([request.path, dict(request.params), dict(request.body)], sort_keys=True)
    return random.Random(hashlib.blake2b(seed.encode("utf-8", "surrogatepass")).digest())


def _id(draw: random.Random) -> str:
    return f"{draw.getrandbits(96):024x}"
