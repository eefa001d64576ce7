"""The errors refspec raises on purpose. Each message is one line: what was wrong, where, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class RefspecError(Exception):
    """Base of every error a user can cause; the command line prints it as one line and exits with 1."""


class CheckpointError(RefspecError):
    """A model file is missing, damaged, of another kind, or says something refspec does not understand."""


class ShapeError(RefspecError, ValueError):
    """Sizes that have to fit do not: widths, vocabularies, layer ids, array shapes."""


class BackendError(RefspecError):
    """llama.cpp refused, or would have ended the process had the call been made."""


class UsageError(RefspecError):
    """An argument outside its range (the command line exits with 2)."""


class PromptError(RefspecError):
    """The prompt cannot be used: empty, not UTF-8, or longer than the context."""


# What code that reads a file raises where a value in it is of another kind than the format says.
WRONG_KIND = TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError, MemoryError


def reads_file(function: Callable[P, R]) -> Callable[P, R]:
    """For a function whose first argument is a file or its header: values of the wrong kind are a CheckpointError."""

    @wraps(function)
    def reading(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except RefspecError:
            raise
        except WRONG_KIND as error:
            file = getattr(args[0], "path", args[0])
            what = " ".join(f"{type(error).__name__}: {error}".split())[:120]
            raise CheckpointError(f"{file}: a value in it is of the wrong kind ({what}); get it again") from error

    return reading
