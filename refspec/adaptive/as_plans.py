"""Plans of policies that do not return any yet: a stopgap, gone when `plan` returns a StepPlan or a TreePlan."""

from __future__ import annotations

from typing import Any


class AsPlans:
    """A policy, and the plan of the step it was asked for last."""

    draft = nodes = 0
    floor = 0.0

    def __init__(self, policy: Any) -> None:
        self.policy, self.keep = policy, policy.keep
        self.stop, self.more = getattr(policy, "stop", None), getattr(policy, "more", None)

    def plan(self, room: int) -> AsPlans:
        self.draft = self.nodes = self.policy.plan(room)
        self.floor = self.policy.floor() if self.more and self.nodes else 0.0
        return self

    def learn(self, plan: AsPlans, *what: Any) -> None:
        self.policy.learn(*what)
