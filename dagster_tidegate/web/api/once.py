"""Requests with an `Idempotency-Key`: what they ask takes effect once."""

import hashlib
from collections.abc import Callable

from fastapi import Request
from fastapi.encoders import jsonable_encoder
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from dagster_tidegate.store import idempotency
from dagster_tidegate.store.database import DataError, Store
from dagster_tidegate.store.idempotency import Claim, Given, Key
from dagster_tidegate.web.access.identity import Identity
from dagster_tidegate.web.api.problems import Code, Problem

REPEATED = "Idempotency-Replayed"
"""An answer has this header, `true`, where an earlier request took effect."""


def once(
    store: Store,
    request: Request,
    identity: Identity,
    key: str | None,
    asked: BaseModel,
    make: Callable[[str | None], Given],
) -> Response:
    """Do what a request asks, unless an earlier request with its key did it.

    A request that is refused has taken no effect, and may be sent again with its key. One whose
    process died is done again when its claim has lapsed.

    Args:
        store: The store.
        request: The request.
        identity: Who asks.
        key: The key, or None.
        asked: The body.
        make: Does it, and returns the answer. It is given an id for what it makes, the same when it
            is done again; None where there is no key.

    Raises:
        Problem: `idempotency_key_reused` or `idempotency_key_in_use`, and what `make` raises.
    """
    if key is None:
        return _answer(make(None))
    parts = [request.method, request.url.path, request.url.query, asked.model_dump_json()]
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    try:
        with store.begin() as conn:
            found = idempotency.claim(conn, store.now(conn), Key(identity.name, key, digest))
    except idempotency.KeyReusedError as error:
        raise Problem(Code.IDEMPOTENCY_KEY_REUSED, str(error)) from error
    except idempotency.KeyInUseError as error:
        headers = {"Retry-After": "1"}
        raise Problem(Code.IDEMPOTENCY_KEY_IN_USE, str(error), headers=headers) from error
    if isinstance(found, Given):
        return _answer(found, {REPEATED: "true"})
    return _answer(_made(store, found, make))


def _made(store: Store, claim: Claim, make: Callable[[str | None], Given]) -> Given:
    try:
        given = make(claim.id)
    except (Problem, DataError):
        with store.begin() as conn:
            idempotency.forget(conn, claim)
        raise
    given = Given(given.status, jsonable_encoder(given.body))
    with store.begin() as conn:
        idempotency.answer(conn, claim, given)
    return given


def _answer(given: Given, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse(jsonable_encoder(given.body), given.status, headers=headers)
