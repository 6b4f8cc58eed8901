"""The errors that are shown as one line: one that a user's input may cause, and one that a disk may."""

import difflib
from collections.abc import Iterable


class FileError(RuntimeError):
    """A file that cannot be written while ranks are at work: shown as one line, and the job ends."""


class UserError(ValueError):
    """A wrong value, file or rank count: shown as one line, exit status 2, never a traceback."""


def unknown(kind: str, given: str, known: Iterable[str]) -> UserError:
    """The error for a name that nobody knows, with the nearest right one."""
    known = sorted(known)
    near = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    return UserError(f"unknown {kind} {given!r}; {hint}")
