"""What the policies of chains and of trees have in common: an account, what steps cost, how far the drafter can be
trusted, and the rate of tokens to beat.

Decides nothing: `adaptive/policy.py` and `adaptive/tree_policy.py` do. What a policy has learned can be taken from one
process to the next (`state`, `resumed`, `tuning/policy_store.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from refspec.adaptive.acceptance_model import Belief
from refspec.adaptive.budget import Account
from refspec.adaptive.costs import Costs

RATE_KEEP = 1 - 1 / 64  # of the sums behind the rate, per step
FEW = 3  # steps that the model weighs in the rate
TRIAL = 2  # steps of a trial
DOUBTED = 4  # of each count that a try begins with: one that believed what the last text showed would find out too late
DISTURBED = 1.5  # times what a step of this kind usually takes, the most that counts

P = TypeVar("P", bound="Policy")


class Policy(Account):
    """most     tokens or nodes that may be drafted, 1 or more
    costs    what steps cost here
    belief   the chances that what was drafted stands
    """

    def __init__(self, most: int, costs: Costs | None = None) -> None:
        super().__init__()
        self.most, self.costs, self.belief = most, costs or Costs(), Belief(most)
        # decayed sums over the speculating steps, the time in plain tokens: texts of any length then compare
        self._tokens = self._spent = 0.0

    def begin(self, held: int = 0) -> None:
        """A new generation after `held` positions."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """What outlasts a text, for `resumed`."""
        return self.account_state() | {
            "costs": self.costs.state(),
            "belief": self.belief.state(),
            "tokens": self._tokens,
            "spent": self._spent,
        }

    @classmethod
    def resumed(cls: type[P], most: int, state: Mapping[str, Any], costs: Costs | None = None) -> P:
        """A policy that goes on where another was left, with `costs` that are newer, if there are any.

        Raises ValueError, KeyError or TypeError for a damaged state, or one of another `most`.
        """
        policy = cls(most, costs or Costs.resumed(state["costs"]))
        policy.resume_account(state)
        policy.belief.resume(state["belief"])
        policy._tokens, policy._spent = float(state["tokens"]), float(state["spent"])
        policy._resume(state, new_costs=costs is not None)
        policy.begin()
        return policy

    def _resume(self, state: Mapping[str, Any], *, new_costs: bool) -> None:
        """Take over what else `state` gave."""

    def _went_at(self, tokens: int, took: float) -> None:
        """Count a speculating step towards the rate: tokens decided in so many plain tokens' time."""
        self._tokens = self._tokens * RATE_KEEP + tokens
        self._spent = self._spent * RATE_KEEP + took

    def _rate_with(self, tokens: float, took: float) -> float:
        """Tokens per plain token's time to beat:

        plain decoding's, or that of the steps so far and of FEW such ones more.
        """
        return max(1.0, (self._tokens + FEW * tokens) / (self._spent + FEW * took))
