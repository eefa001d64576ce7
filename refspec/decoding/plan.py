"""How much a step drafts, as the cycles ask a policy (`refspec/adaptive/` has two) or what takes its place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from refspec.reference.draft import Stop
from refspec.reference.metrics import Step
from refspec.reference.tree import Tree
from refspec.reference.tree_grow import More


class DraftPlan(Protocol):
    """What one step drafts of a chain."""

    @property
    def draft(self) -> int:
        """The most tokens to draft; 0 is a step of plain decoding."""

    @property
    def stop(self) -> Stop | None:
        """Whether to draft no token i (0 = first), whose likeliest candidate has this probability; None never stops."""

    def keep(self, drafted: int, /) -> int:
        """How many of the drafted tokens to verify."""


class DraftPolicy(Protocol):
    """Chooses from past steps and the drafter's confidence, never from a coin."""

    def plan(self, room: int, /) -> DraftPlan:
        """The plan of the next step, which may draft `room` tokens at most."""

    def learn(self, plan: Any, step: Step, /) -> None:
        """Take in what the step of a plan drafted, accepted and cost."""


class FixedLength:
    """As long a draft as there is room for: its own plan."""

    draft = 0
    stop: Stop | None = None

    def plan(self, room: int) -> FixedLength:
        """Draft `room` tokens."""
        self.draft = room
        return self

    def keep(self, drafted: int) -> int:
        """All of them."""
        return drafted

    def learn(self, plan: FixedLength, step: Step) -> None:
        """Nothing."""


class DraftTreePlan(Protocol):
    """What one step drafts of a tree."""

    @property
    def nodes(self) -> int:
        """The most nodes to draft; 0 is a step of plain decoding."""

    @property
    def floor(self) -> float:
        """The draft probability below which no node is grown."""

    @property
    def more(self) -> More | None:
        """Whether a tree grown so far gets another level; None always."""

    def keep(self, tree: Tree, /) -> Tree:
        """The part of a grown tree to verify."""


class DraftTreePolicy(Protocol):
    """`DraftPolicy` for trees."""

    def plan(self, room: int, /) -> DraftTreePlan:
        """The plan of the next step, which may draft `room` nodes at most."""

    def learn(self, plan: Any, step: Step, path: Sequence[int], /) -> None:
        """Take in what the step of a plan verified, accepted (`path`, nodes of what `keep` returned) and cost."""


class FixedTree:
    """As many nodes as there is room for: its own plan."""

    nodes, floor = 0, 0.0
    more: More | None = None

    def plan(self, room: int) -> FixedTree:
        """Draft `room` nodes."""
        self.nodes = room
        return self

    def keep(self, tree: Tree) -> Tree:
        """All of it."""
        return tree

    def learn(self, plan: FixedTree, step: Step, path: Sequence[int]) -> None:
        """Nothing."""
