"""The answer of services that complete a chat."""

from pydantic import BaseModel, Field


class Message(BaseModel):
    """What was said."""

    content: str = Field(min_length=1)


class Choice(BaseModel):
    """One of the answers."""

    message: Message


class Completion(BaseModel):
    """A completed chat."""

    choices: list[Choice] = Field(min_length=1)

    @property
    def text(self) -> str:
        """The first answer."""
        return self.choices[0].message.content
