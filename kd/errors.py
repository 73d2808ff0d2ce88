"""What can go wrong in ways that a user can mend."""


class InputError(ValueError):
    """A value that a user gave cannot be used.

    The message is one line: the field, the value and what is allowed. Command lines print it and end with status 2.
    """

    def __init__(self, field: str, value: object, allowed: str) -> None:
        shown = value if isinstance(value, str) else repr(value)
        super().__init__(" ".join(f"{field}: {shown}: {allowed}".split()))
        self.field, self.value, self.allowed = field, value, allowed

    def __reduce__(self) -> tuple[type, tuple[str, object, str]]:  # crosses the process border of a data worker
        return type(self), (self.field, self.value, self.allowed)


class DivergedError(RuntimeError):
    """The loss of a run became NaN or infinite; the last good checkpoint is kept."""
