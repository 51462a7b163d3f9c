"""The base of the clients of third-party services."""

from typing import Any, ClassVar, TypeVar

import dagster as dg
import httpx
from pydantic import BaseModel, Field, PrivateAttr, ValidationError

from dagster_tidegate import BreakerResource
from resources.deadline import DeadlineTransport, within

AnswerT = TypeVar("AnswerT", bound=BaseModel)


class InvalidResponseError(Exception):
    """A service responded 2xx with a body that violates its interface.

    The breaker judges the response; if that names no other cause, it is a failure of the service.
    """

    def __init__(self, message: str, response: httpx.Response) -> None:
        super().__init__(message)
        self.response = response


class ServiceClient(dg.ConfigurableResource):
    """Client of one service; every call goes through the service's breaker."""

    service: ClassVar[str]

    breakers: dg.ResourceDependency[BreakerResource]
    base_url: str = Field(description="Address of the service, without a trailing slash.")
    timeout_s: float = Field(
        default=3.0, gt=0, le=600, description="Time that a whole call may take, in seconds."
    )

    _http: httpx.Client = PrivateAttr()

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:  # noqa: ARG002 -- Dagster's signature
        """Open the connections."""
        # Never through a proxy: the services of this deployment are local.
        self._http = httpx.Client(
            transport=DeadlineTransport(), timeout=self.timeout_s, trust_env=False
        )

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
            answer: Model of the response.
            idempotency_key: Sent as `Idempotency-Key`; the same for every try of a record.
            request: `params` or `json`, as httpx takes them.

        Raises:
            BreakerOpenError: If the breaker rejects the call.
            AnswerError: If the service responds 2xx and did not do what was asked.
            httpx.HTTPStatusError: If the service responds with an error.
            httpx.TransportError: If it is unreachable or too slow.
            InvalidResponseError: If the response is invalid.
        """
        # The breaker gets the response and not the model, so that it can judge it.
        response = self.breakers.breaker(self.service).call(
            self._send, method, path, answer, idempotency_key, request
        )
        return answer.model_validate_json(response.content)

    def _send(
        self,
        method: str,
        path: str,
        answer: type[BaseModel],
        idempotency_key: str,
        request: dict[str, Any],
    ) -> httpx.Response:
        with within(self.timeout_s):
            response = self._http.request(
                method,
                f"{self.base_url}/{path}",
                headers={"Idempotency-Key": idempotency_key},
                **request,
            )
        response.raise_for_status()
        try:
            answer.model_validate_json(response.content)
        except ValidationError as error:
            flaw = error.errors(include_url=False)[0]
            where = ".".join(map(str, flaw["loc"])) or "answer"
            raise InvalidResponseError(
                f"{self.service} responded {response.status_code} to {path} with an invalid "
                f"{answer.__name__}: {where}: {flaw['msg']}",
                response,
            ) from error
        return response
