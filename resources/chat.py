"""The response of chat completion services."""

from pydantic import BaseModel, Field


class Message(BaseModel):
    """A message."""

    content: str = Field(min_length=1)


class Choice(BaseModel):
    """One of the completions."""

    message: Message


class Completion(BaseModel):
    """A chat completion."""

    choices: list[Choice] = Field(min_length=1)

    @property
    def text(self) -> str:
        """The text of the first choice."""
        return self.choices[0].message.content
