"""What the policies of chains and of trees share: budget, costs, acceptance and the rate of tokens to beat.

Decides nothing: `adaptive/policy.py` and `adaptive/tree_policy.py` do. What a policy has learned can be taken from one
process to the next (`state`, `resumed`, `tuning/policy_store.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from refspec.adaptive.acceptance_model import AcceptanceModel
from refspec.adaptive.budget import Budget
from refspec.adaptive.costs import Costs

TRIAL = 2  # steps of a trial
DOUBTED = 4  # of each count that a try begins with, or one that believed the last output would find out too late
DISTURBED = 1.5  # times what a step of this kind usually takes, the most that counts
RATE_KEEP = 1 - 1 / 64  # of the sums behind the rate, per step
FEW = 3  # steps that the model weighs in the rate

P = TypeVar("P", bound="Policy")


class Rate:
    """Tokens per plain token's time of the speculating steps, which makes outputs of any length comparable."""

    def __init__(self, tokens: float = 0.0, spent: float = 0.0) -> None:
        self.tokens, self.spent = tokens, spent  # decayed sums

    def add(self, tokens: int, took: float) -> None:
        """A step that decided so many tokens in so many plain tokens' time."""
        self.tokens = self.tokens * RATE_KEEP + tokens
        self.spent = self.spent * RATE_KEEP + took

    def to_beat(self, tokens: float, took: float) -> float:
        """Plain decoding's rate, or that of the steps so far and of FEW such ones more."""
        return max(1.0, (self.tokens + FEW * tokens) / (self.spent + FEW * took))


class Policy:
    """What a policy knows; `most` is the tokens or nodes that may be drafted, 1 or more."""

    def __init__(self, most: int, costs: Costs | None = None) -> None:
        self.most, self.costs = most, costs or Costs()
        self.acceptance, self.budget, self.rate = AcceptanceModel(most), Budget(), Rate()
        self.begin()

    @property
    def off(self) -> bool:
        """Whether speculation does not pay, until the budget allows another try."""
        return self.budget.off

    @property
    def remembered(self) -> int:
        """Outputs that are remembered."""
        return self.budget.remembered

    def begin(self, held: int = 0) -> None:
        """A new generation after `held` positions: no step came before, and its prompt is read."""
        self._held = self.costs.context = held
        self._before = 0  # tokens of the batch before
        self._reading = True
        self.budget.begin(held)

    def expect(self, mean_log_probability: float) -> None:
        """The drafter's mean log-probability along the end of the prompt, nan where it cannot tell."""
        self.budget.expect(mean_log_probability)

    def waiting(self) -> bool:
        """Whether the drafter's positions may wait: speculation is off, and the prompt has been read."""
        return self.budget.off and not self._reading

    def state(self) -> dict[str, Any]:
        """What outlasts an output, for `resumed`."""
        parts = {name: getattr(self, name).state() for name in ("budget", "costs", "acceptance")}
        return parts | {"rate": [self.rate.tokens, self.rate.spent]}

    @classmethod
    def resumed(cls: type[P], most: int, state: Mapping[str, Any], costs: Costs | None = None) -> P:
        """A policy that goes on from `state`, or newer `costs`; ValueError, KeyError or TypeError for a damaged one."""
        policy = cls(most, costs or Costs.resumed(state["costs"]))
        policy.budget.resume(state["budget"])
        policy.acceptance.resume(state["acceptance"])
        tokens, spent = state["rate"]
        policy.rate = Rate(float(tokens), float(spent))
        policy._resume(state, new_costs=costs is not None)
        policy.begin()
        return policy

    def _resume(self, state: Mapping[str, Any], *, new_costs: bool) -> None:
        """Take over what else `state` gave."""
