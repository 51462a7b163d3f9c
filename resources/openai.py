"""OpenAI: writes texts."""

from resources.chat import Completion
from resources.client import ServiceClient


class OpenAIResource(ServiceClient):
    """Client of OpenAI."""

    service = "openai"

    def write(self, task: str, about: str, *, idempotency_key: str) -> str:
        """Return a text.

        Args:
            task: What to write.
            about: What it is about.
            idempotency_key: The same at every try.
        """
        messages = [{"role": "system", "content": task}, {"role": "user", "content": about}]
        return self.call(
            "POST",
            "v1/chat/completions",
            Completion,
            idempotency_key=idempotency_key,
            json={"model": "gpt-4o-mini", "messages": messages},
        ).text
