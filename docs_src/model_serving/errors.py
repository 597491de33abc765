"""Why the model cannot be loaded."""


class ModelLoadError(RuntimeError):
    """Ends startup: says what was asked, what is wrong, where, and what to do."""

    def __init__(self, asked: str, problem: str, *, where: dict[str, object], advice: str) -> None:
        self.asked = asked
        self.problem = problem
        self.where = where
        self.advice = advice
        width = max(map(len, where))
        places = "\n".join(f"  {name:<{width}}  {place}" for name, place in where.items())
        message = f"{asked}, but {problem}.\n\n{places}\n\n{advice}"
        # A path may have bytes in it that are no letters: an answer couldn't be sent with them.
        super().__init__(message.encode(errors="backslashreplace").decode())
