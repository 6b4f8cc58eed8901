"""The errors that are shown as one line: one that a user's input may cause, and one that a disk may."""

import difflib
from collections.abc import Iterable

LONGEST = 1000
"""Characters of a message; what a user's file made longer is cut in the middle."""


class FileError(RuntimeError):
    """A file that cannot be written while ranks are at work: shown as one line, and the job ends."""


class UserError(ValueError):
    """A wrong value, file or rank count: shown as one line, exit status 2, never a traceback."""

    def __init__(self, message: str):
        """`message` may quote what a file says: it becomes one printable line."""
        super().__init__(printable(message))


def printable(message: str) -> str:
    """One line without control characters, which could make a terminal do things; at most `LONGEST` characters."""
    if len(message) > LONGEST:
        half = LONGEST // 2
        message = f"{message[:half]} ... {message[-half:]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)


def unknown(kind: str, given: str, known: Iterable[str]) -> UserError:
    """The error for a name that nobody knows, with the nearest right one."""
    known = sorted(known)
    near = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    return UserError(f"unknown {kind} {given!r}; {hint}")
