"""What people read of errors."""

from pydantic import ValidationError


class HoldfastError(Exception):
    """What ends a command or a service: the message is one line, of what happened and of what to do."""

    def __init__(self, message: str) -> None:
        # Keys, names and values that it quotes may hold line breaks.
        super().__init__(" ".join(message.splitlines()))


def first_flaw(error: ValidationError) -> str:
    """What is wrong first, and where; without the input, which may be anything."""
    first = error.errors(include_input=False, include_url=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'value'}: {first['msg']}"


def describe(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}" if str(error) else type(error).__name__
