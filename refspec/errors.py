"""The errors refspec raises on purpose. Each message is one line: what was wrong, where, and what to do."""


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
