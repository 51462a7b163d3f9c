"""Perplexity: finds news about companies."""

from resources.chat import Completion
from resources.client import ServiceClient


class PerplexityResource(ServiceClient):
    """Client of Perplexity."""

    service = "perplexity"

    def news(self, company: str, *, idempotency_key: str) -> str:
        """Return a sentence of recent news."""
        messages = [
            {"role": "system", "content": "One sentence of recent news about the company."},
            {"role": "user", "content": company},
        ]
        return self.call(
            "POST",
            "chat/completions",
            Completion,
            idempotency_key=idempotency_key,
            json={"model": "sonar", "messages": messages},
        ).text
