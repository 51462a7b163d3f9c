"""Steers a running sandbox, and asks it what arrived."""

import time
from datetime import datetime
from typing import Any

import httpx

from demo.sandbox.faults import Fault


class SandboxError(Exception):
    """The sandbox can't be reached, or refused an order; the message says what would be right."""


class SandboxControl:
    """A sandbox that runs somewhere on this machine.

    Args:
        url: Its address, for example `http://127.0.0.1:8765`.

    Example:
        ```python
        with SandboxControl("http://127.0.0.1:8765") as sandbox:
            sandbox.place("instantly", Fault(mode="outage", for_s=30))
            sandbox.effects("instantly")  # {"dach/ann@acme.example": 1, ...}
        ```
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        # An environment's proxy has no business between two processes of this machine.
        self._http = httpx.Client(base_url=self.url, timeout=5.0, trust_env=False)

    def __enter__(self) -> "SandboxControl":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def wait_until_up(self, timeout_s: float = 10.0) -> None:
        """Wait until the sandbox answers.

        Raises:
            SandboxError: If it does not within `timeout_s` seconds.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                self.stats()
            except SandboxError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.05)
            else:
                return

    def place(self, service: str, fault: Fault) -> dict[str, Any]:
        """Make a service misbehave. Returns the fault with `placed_at` and `healed_at`."""
        body = fault.model_dump(mode="json", exclude_none=True)
        return self._ask("POST", f"/_control/{service}", json=body)

    def heal(self, service: str) -> bool:
        """End the fault of a service. Returns whether it had one."""
        return self._ask("DELETE", f"/_control/{service}")["healed"]

    def stats(self) -> dict[str, dict[str, Any]]:
        """Return the counts of each service."""
        return self._ask("GET", "/_stats")

    def reset(self) -> None:
        """Set all counts back and forget the calls; faults stay."""
        self._ask("DELETE", "/_stats")

    def calls(
        self, *, since: datetime | None = None, service: str | None = None
    ) -> list[dict[str, Any]]:
        """Return the last calls, the oldest first; `at` is when a call arrived.

        Args:
            since: Only those from this time on; with a time zone.
            service: Only those of this service.
        """
        params = {"since": None if since is None else since.isoformat(), "service": service}
        return self._ask(
            "GET", "/_calls", params={k: v for k, v in params.items() if v is not None}
        )

    def keys(self, service: str) -> dict[str, dict[str, int]]:
        """Return `arrivals`, `effects` and `repeats` for each idempotency key."""
        return self._ask("GET", f"/_keys/{service}")

    def effects(self, service: str) -> dict[str, int]:
        """Return how often each subject took effect; of instantly, `campaign/address`."""
        return self._ask("GET", f"/_effects/{service}")

    def _ask(self, method: str, path: str, **request: Any) -> Any:
        try:
            response = self._http.request(method, path, **request)
        except httpx.HTTPError as error:
            raise SandboxError(
                f"no sandbox answers at {self.url} ({error}); start one with "
                "'python -m demo sandbox serve', or name its address with --url"
            ) from error
        try:
            answered = response.json()
            if response.is_error:
                raise SandboxError(answered["error"])
        except (ValueError, TypeError, KeyError) as error:
            raise SandboxError(f"what answers at {self.url} is not the sandbox") from error
        return answered
