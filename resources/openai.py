"""OpenAI: writes texts."""

from resources.chat import Completion
from resources.client import ServiceClient


class OpenAIResource(ServiceClient):
    """Client of OpenAI."""

    service = "openai"

    def write(self, task: str, about: str, *, idempotency_key: str) -> str:
        """Write a text about something."""
        messages = [{"role": "system", "content": task}, {"role": "user", "content": about}]
        return self.call(
            "POST",
            "v1/chat/completions",
            Completion,
            idempotency_key=idempotency_key,
            json={"model": "gpt-4o-mini", "messages": messages},
        ).text
