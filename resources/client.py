"""What the clients of the third-party services have in common."""

from typing import Any, ClassVar, TypeVar

import dagster as dg
import httpx
from pydantic import BaseModel, Field, PrivateAttr, ValidationError

from dagster_tidegate import BreakerResource

AnswerT = TypeVar("AnswerT", bound=BaseModel)


class WrongAnswerError(Exception):
    """A service answered 2xx with something that is not what its interface promises.

    Its breaker counts it as a failure: a service that answers with nonsense is not well.
    """


class ServiceClient(dg.ConfigurableResource):
    """A client of one service; each of its calls goes through the breaker of that service."""

    service: ClassVar[str]

    breakers: dg.ResourceDependency[BreakerResource]
    base_url: str = Field(description="Address of the service, without a trailing slash.")
    timeout_s: float = Field(
        default=3.0, gt=0, le=600, description="A call that takes longer failed, in seconds."
    )

    _http: httpx.Client = PrivateAttr()

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:  # noqa: ARG002 -- Dagster's signature
        """Open the connections."""
        # No proxy of the environment: the services of this deployment are on this machine.
        self._http = httpx.Client(timeout=self.timeout_s, trust_env=False)

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:  # noqa: ARG002 -- Dagster's signature
        """Close the connections."""
        self._http.close()

    def call(
        self,
        method: str,
        path: str,
        answer: type[AnswerT],
        *,
        idempotency_key: str,
        **request: Any,
    ) -> AnswerT:
        """Call the service through its breaker.

        Args:
            method: GET or POST.
            path: Path of the endpoint, without a leading slash.
            answer: What the answer must look like.
            idempotency_key: Sent as `Idempotency-Key`; the same at every try.
            request: `params` or `json`, as httpx takes them.

        Returns:
            The answer, checked.

        Raises:
            BreakerOpenError: If the breaker lets no call through.
            httpx.HTTPStatusError: If the service refuses.
            httpx.TransportError: If it can't be reached or takes too long.
            WrongAnswerError: If what it answers makes no sense.
        """
        return self.breakers.breaker(self.service).call(
            self._send, method, path, answer, idempotency_key, request
        )

    def _send(
        self,
        method: str,
        path: str,
        answer: type[AnswerT],
        idempotency_key: str,
        request: dict[str, Any],
    ) -> AnswerT:
        response = self._http.request(
            method,
            f"{self.base_url}/{path}",
            headers={"Idempotency-Key": idempotency_key},
            **request,
        )
        response.raise_for_status()
        try:
            return answer.model_validate_json(response.content)
        except ValidationError as error:
            flaw = error.errors(include_url=False)[0]
            where = ".".join(map(str, flaw["loc"])) or "answer"
            raise WrongAnswerError(
                f"{self.service} answered {response.status_code} to {path} with something else "
                f"than {answer.__name__}: {where}: {flaw['msg']}"
            ) from error
