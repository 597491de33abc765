"""What is sent: texts of common words, which are a word piece each."""

import math
import random
from collections.abc import Callable

from .client import request

SEED = 4
LONGEST = 256  # word pieces; the example cuts off the rest
MARKS = 2  # word pieces at the start and the end of each text

WORDS = ["the", "time", "people", "way", "water", "day", "world", "life", "hand", "part", "child"]


def short(order: random.Random) -> int:
    return order.randint(8, 12)


def mixed(order: random.Random) -> int:
    """As many texts between 4 and 8 as between 128 and 256: most are short, some are long."""
    return round(math.exp(order.uniform(math.log(4), math.log(LONGEST))))


LOADS: dict[str, Callable[[random.Random], int]] = {"short": short, "mixed": mixed}
DESCRIPTIONS = {
    "short": "texts of 8 to 12 word pieces",
    "mixed": f"texts of 4 to {LONGEST} word pieces, log-uniform",
}


def sentences(load: str, count: int) -> list[str]:
    """The same for everybody."""
    order = random.Random(SEED)
    return [" ".join(order.choices(WORDS, k=LOADS[load](order) - MARKS)) for _ in range(count)]


def requests(load: str, count: int) -> list[bytes]:
    """For the example, and for what is measured beside it with the same routes."""
    return [request("POST", "/embeddings", {"texts": [text]}) for text in sentences(load, count)]
