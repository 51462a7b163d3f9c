"""Client of a running sandbox."""

import time
from datetime import datetime
from typing import Any

import httpx

from demo.sandbox.faults import Fault


class SandboxError(Exception):
    """The sandbox is unreachable or rejected a request; the message says what to do."""


class SandboxClient:
    """Controls a running sandbox and reads what it received.

    Args:
        url: Its address, for example `http://127.0.0.1:8765`.

    Example:
        ```python
        with SandboxClient("http://127.0.0.1:8765") as sandbox:
            sandbox.place("instantly", Fault(mode="outage", for_s=30))
            sandbox.effects("instantly")  # {"dach/ann@acme.example": 1, ...}
        ```
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        # Never through a proxy: both processes are on this machine.
        self._http = httpx.Client(base_url=self.url, timeout=15.0, trust_env=False)

    def __enter__(self) -> "SandboxClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def wait_until_up(self, timeout_s: float = 10.0) -> None:
        """Wait until the sandbox responds.

        Raises:
            SandboxError: After `timeout_s` seconds.
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
        """Start a fault of a service. Returns it with `placed_at` and `healed_at`."""
        body = fault.model_dump(mode="json", exclude_defaults=True)
        return self._ask("POST", f"/_control/{service}", json=body)

    def heal(self, service: str) -> bool:
        """End the fault of a service. Returns whether there was one."""
        return self._ask("DELETE", f"/_control/{service}")["healed"]

    def stats(self) -> dict[str, dict[str, Any]]:
        """Return the counters of each service."""
        return self._ask("GET", "/_stats")

    def reset(self) -> None:
        """Reset the counters and the call log; faults stay."""
        self._ask("DELETE", "/_stats")

    def calls(
        self, *, since: datetime | None = None, service: str | None = None
    ) -> list[dict[str, Any]]:
        """Return the last calls, oldest first.

        Args:
            since: Only calls that arrived at or after this time (with a time zone).
            service: Only calls of this service.
        """
        params = {"since": None if since is None else since.isoformat(), "service": service}
        return self._ask(
            "GET", "/_calls", params={k: v for k, v in params.items() if v is not None}
        )

    def keys(self, service: str) -> dict[str, dict[str, int]]:
        """Return `arrivals`, `effects` and `repeats` for each idempotency key."""
        return self._ask("GET", f"/_keys/{service}")

    def effects(self, service: str) -> dict[str, int]:
        """Return how often each subject took effect; for instantly, `campaign/address`."""
        return self._ask("GET", f"/_effects/{service}")

    def _ask(self, method: str, path: str, **request: Any) -> Any:
        try:
            response = self._http.request(method, path, **request)
        except httpx.HTTPError as error:
            raise SandboxError(
                f"no sandbox responds at {self.url} ({error}); start one with "
                "'python -m demo sandbox serve', or pass its address with --url or "
                "DEMO_SANDBOX_URL"
            ) from error
        try:
            answered = response.json()
            if response.is_error:
                raise SandboxError(answered["error"])
        except (ValueError, TypeError, KeyError) as error:
            raise SandboxError(f"the server at {self.url} is not a sandbox") from error
        return answered
