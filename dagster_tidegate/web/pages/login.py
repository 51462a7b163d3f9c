"""The pages on which a browser exchanges a token for a session, and ends it."""

import base64
import hashlib
from datetime import datetime
from html import escape
from string import Template
from urllib.parse import parse_qs, urlencode

from starlette.responses import HTMLResponse, RedirectResponse, Response

from dagster_tidegate.web.access.identity import Identity
from dagster_tidegate.web.access.origins import local_path
from dagster_tidegate.web.api.authentication import SESSION_COOKIE

LOGIN = "/login"
LOGOUT = "/logout"
MAX_FIELDS = 4

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 0; background: #f5f6f8; color: #1b1f24; }
main { max-width: 24rem; margin: 15vh auto; padding: 2rem; background: #fff; border-radius: 8px;
  box-shadow: 0 1px 4px rgb(0 0 0 / 20%); }
h1 { font-size: 1.25rem; margin-top: 0; }
label, input, button { display: block; width: 100%; box-sizing: border-box; font: inherit; }
input { margin: .25rem 0 1rem; padding: .5rem; border: 1px solid #8b949e; border-radius: 4px; }
button { padding: .5rem; border: 0; border-radius: 4px; background: #0b5fce; color: #fff; }
.refused { color: #b3261e; }
@media (prefers-color-scheme: dark) {
  body { background: #15181c; color: #e6e8eb; } main { background: #22272e; }
  input { background: #15181c; color: inherit; } .refused { color: #ff9b92; }
}
"""
_PAGE = Template(
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Tidegate</title>
<style>$style</style>
</head>
<body><main><h1>$title</h1>$body</main></body>
</html>
"""
)
_FORM = Template(
    """$refusal<form method="post" action="$action">
<label for="token">Token</label>
<input id="token" name="token" type="password" autocomplete="current-password" required autofocus>
<input name="next" type="hidden" value="$next">
<button>Log in</button>
</form>
<p>Who runs this server makes a token with <code>tidegate tokens create</code>.</p>"""
)
_LOGGED_IN = Template(
    """<p>You are <strong>$name</strong>, $role.</p>
<p><a href="$home">To the pages</a></p>
<form method="post" action="$action"><button>Log out</button></form>"""
)
_DIGEST = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_CSP = (
    f"default-src 'none'; style-src 'sha256-{_DIGEST}'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)


def form(prefix: str, wanted: str | None, *, refusal: str = "", status: int = 200) -> Response:
    """Return the page that asks for a token.

    Args:
        prefix: The path below which everything is served; empty for the root.
        wanted: Where the browser wants to go afterwards.
        refusal: Why the last try was refused.
        status: Status of the answer.
    """
    said = f'<p class="refused" role="alert">{escape(refusal)}</p>' if refusal else ""
    body = _FORM.substitute(
        refusal=said,
        action=escape(prefix + LOGIN),
        next=escape(local_path(wanted, home(prefix))),
    )
    return _page("Log in to Tidegate", body, status)


def logged_in(prefix: str, identity: Identity) -> Response:
    """Return the page that says who is logged in, and lets them out."""
    body = _LOGGED_IN.substitute(
        name=escape(identity.name),
        role=escape(identity.role),
        home=escape(home(prefix)),
        action=escape(prefix + LOGOUT),
    )
    return _page("Tidegate", body, 200)


def submitted(body: bytes) -> tuple[str, str | None]:
    """Return the token and the wanted path of the form that was sent; empty where there is none.

    Args:
        body: The body, as browsers encode forms.
    """
    try:
        fields = parse_qs(body.decode("ascii"), max_num_fields=MAX_FIELDS, errors="strict")
    except ValueError:
        return "", None
    return fields.get("token", [""])[0].strip(), fields.get("next", [None])[0]


def to_login(prefix: str, wanted: str) -> Response:
    """Return the way to the form, and from there to where somebody wanted to go."""
    query = f"?{urlencode({'next': wanted})}" if local_path(wanted, "") else ""
    return RedirectResponse(f"{prefix}{LOGIN}{query}", 303)


def begun(prefix: str, wanted: str | None, secret: str, ends: datetime, *, https: bool) -> Response:
    """Return the answer to a login: the cookie, and the way on.

    The cookie is not sent with what another site makes the browser send, except when a person
    follows a link: so links in messages lead to the pages, and a reading request changes nothing.
    """
    answer = RedirectResponse(local_path(wanted, home(prefix)), 303)
    answer.set_cookie(
        cookie_name(https), secret, expires=ends, httponly=True, secure=https, samesite="lax"
    )
    return answer


def ended(prefix: str, *, https: bool) -> Response:
    """Return the answer to a logout."""
    answer = RedirectResponse(prefix + LOGIN, 303)
    answer.delete_cookie(cookie_name(https), httponly=True, secure=https, samesite="lax")
    return answer


def cookie_name(https: bool) -> str:
    """Return the name of the cookie; with https one that no other host can set."""
    return f"__Host-{SESSION_COOKIE}" if https else SESSION_COOKIE


def home(prefix: str) -> str:
    """Return the path of Dagster's pages."""
    return prefix or "/"


def _page(title: str, body: str, status: int) -> Response:
    page = _PAGE.substitute(style=_STYLE, title=escape(title), body=body)
    return HTMLResponse(page, status, headers={"Content-Security-Policy": _CSP})
