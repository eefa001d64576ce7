"""The ways to decode that `refspec bench` compares: built once, on one target.

A kind is a session, and the options of its runs. Chains are drafted by the drafter alone or, with lookup, also from
what followed the same words before, where the drafter is unsure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from refspec.decoding.drafter import Drafter
from refspec.decoding.fallback import FallbackDrafter
from refspec.decoding.lookup import LookupDrafter
from refspec.decoding.tree_lookup import TreeLookupDrafter
from refspec.errors import UsageError
from refspec.session import ADAPTIVE_MAX, Session

PLAIN, AGAIN = "plain", "plain again"
STOCK = "stock plain"  # plain decoding by llama.cpp's kernels, where the session multiplies with refspec's
CHOICES = ("plain", "chain", "adaptive", "tree", "lookup")  # what `--kinds` may name


class Kind(NamedTuple):
    """One way to decode: its session, the options of its runs, and whether the adaptive kind is compared with it."""

    session: Session
    options: dict[str, Any]
    fixed: bool = False


def default_kinds(session: Session) -> list[str]:
    """What a session has: plain, chains, adaptive, trees where it drafts them, lookup where its drafter has it."""
    found = ["plain", "chain", "adaptive"]
    if session.tree is not None:
        found.append("tree")
    if isinstance(session.drafter, (FallbackDrafter, TreeLookupDrafter)):
        found.append("lookup")
    return found


def kinds_of(session: Session, lengths: Sequence[int], chosen: Sequence[str]) -> dict[str, Kind]:
    """The kinds to compare on a session with a drafter, by name; plain decoding always, once more for the noise.

    `chosen` are names of CHOICES; "lookup" adds lookup alone, at the longest of the lengths, and every other kind with
    lookup. UsageError for kinds the session cannot run.
    """
    trained = session.drafter
    assert trained is not None
    if isinstance(trained, (FallbackDrafter, TreeLookupDrafter)):
        trained = trained.trained
    if unknown := [kind for kind in chosen if kind not in CHOICES]:
        raise UsageError(f"--kinds {','.join(chosen)}: {unknown[0]} is none of {', '.join(CHOICES)}")
    if "tree" in chosen and session.tree is None:
        raise UsageError("--kinds tree: say how large the trees are, such as --tree 8")
    longest = max(lengths)
    chains = _sibling(session, trained, longest)
    found = {PLAIN: Kind(chains, {"speculate": False}, fixed=True), AGAIN: Kind(chains, {"speculate": False})}
    if matmul_of(session.target) is not None:
        found[STOCK] = Kind(chains, {"speculate": False})
    owners = {"": chains}
    if "lookup" in chosen and not isinstance(trained, LookupDrafter):
        found["lookup"] = Kind(_sibling(session, LookupDrafter(), longest), {"adaptive": False})
        if trained.capture_layers:
            owners[" + lookup"] = _sibling(session, FallbackDrafter(trained), longest)
    most = min(max(ADAPTIVE_MAX, longest), session.draft_limit)
    for suffix, owner in owners.items():
        if "chain" in chosen:
            for k in lengths:
                found[f"chain {k}{suffix}"] = Kind(owner, {"adaptive": False, "draft_max": k}, fixed=not suffix)
        if "adaptive" in chosen:
            found[f"adaptive{suffix}"] = Kind(owner, {"adaptive": True, "draft_max": most})
    if "tree" in chosen:
        growers = {"": trained} | ({" + lookup": TreeLookupDrafter(trained)} if "lookup" in chosen else {})  # type: ignore[arg-type]
        for adaptive in (False, True) if "adaptive" in chosen else (False,):
            for suffix, grower in growers.items():
                how: dict[str, Any] = {"draft_max": session.draft_max, "name": session.name, "tree": session.tree}
                made = Session(session.target, grower, tuned=session.tuned, **how)
                name = f"{'adaptive ' if adaptive else ''}tree {session.tree}{suffix}"
                found[name] = Kind(made, {"adaptive": adaptive})
    return found


def _sibling(session: Session, drafter: Drafter, longest: int) -> Session:
    """A session of chains on the same target."""
    how: dict[str, Any] = {"name": session.name, "draft_limit": session.draft_limit, "tuned": session.tuned}
    return Session(session.target, drafter, draft_max=longest, **how)


def matmul_of(target: Any) -> Any:
    """What has refspec's kernels multiply in a target (`llama/matmul_hook.py`), or None."""
    return getattr(getattr(target, "model", None), "panels", None)


@contextmanager
def matmul_for(target: Any, kind: str) -> Iterator[None]:
    """Leave the matrix multiplications to llama.cpp while the kind STOCK is run."""
    hook = matmul_of(target) if kind == STOCK else None
    if hook is not None:
        hook.switch(False)
    try:
        yield
    finally:
        if hook is not None:
            hook.switch(True)
