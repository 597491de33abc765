"""Functions to inject whose annotations are postponed, in a module of names of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends

if TYPE_CHECKING:
    from decimal import Decimal


@dataclass
class Message:
    text: str


def get_word() -> str:
    return "word"


async def handle(message: Message, word: Annotated[str, Depends(get_word)]) -> Message:
    return Message(f"{message.text} {word}")


async def count(message: Message, word: Annotated[str, Depends(get_word)]) -> Decimal:
    raise NotImplementedError
