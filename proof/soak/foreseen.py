"""What the log may say."""

import re

from proof.claims import Violation
from proof.record import Event

# What is in a record's text, and in its error.
FORESEEN = (
    (r"`get_feed` ended by itself while serving$", r"Planned\("),
    (r"`broken_gauge` failed to start$", r"Planned\("),
    (r"Exception in ASGI|Error in ASGI", r"There is no value of `(get_feed|get_gauge|get_scarce)`"),
    # WebSockets hold values for as long as they are open.
    (r"^The old `.*` is still waited for; ", "None"),
    # A run in which a value has died ends with its error.
    (r"Application shutdown failed|Planned: the feed is broken", "None"),
)
# When a run ends under load: a worker has taken a message, and its container is closed.
AT_AN_END = ((r"^A message was neither done nor failed: ", "None"),)
# Errors in a traceback that is in a text.
ERRORS = re.compile(r"^[\s|]*[\w.]*(?:Error|Exception|Timeout)(?:: |$)", re.MULTILINE)


def unforeseen(lines: list[Event], *, has_restarted: bool = False) -> list[Violation]:
    """What the log says, and nobody has planned."""
    foreseen = FORESEEN + AT_AN_END if has_restarted else FORESEEN
    return [
        Violation("log", f"{line['level']} {line['text']}: {line['error']}")
        for line in lines
        if ERRORS.search(line["text"])
        or not any(
            re.search(text, line["text"]) and re.search(error, line["error"])
            for text, error in foreseen
        )
    ]
