"""A decode cycle made of numbers: what steps cost and how likely draft tokens are accepted is given.

Time is simulated, nothing is measured.
"""

import math
import random

from refspec.adaptive.costs import AFTER
from refspec.reference.metrics import Seconds, Step

MOST = 8


class Machine:
    """`rows[r]` seconds of a target run over r tokens after AFTER positions, and what each position more costs a token.

    The drafter's and refspec's seconds, and the price of changing the batch size.
    """

    def __init__(self, rows, *, attention=0.0, switch=0.0, draft=0.1, feed=0.05, other=0.02, noise=0.05):
        self.rows, self.switch, self.draft, self.feed, self.other, self.noise = rows, switch, draft, feed, other, noise
        self.attention = attention

    def target(self, rows, context):
        return self.rows[rows] + self.attention * rows * (context - AFTER)


# after long prompts several tokens are much dearer beside one
LONG = Machine(
    [0, 1, 1.35, 1.58, 1.94, 2.26, 2.6, 2.9, 3.2, 3.5], attention=0.00075, switch=0.4, draft=0.02, feed=0.06, other=0.03
)


class Fixed:
    """Always the same length: the policies to beat, and their own plans."""

    off = False

    def __init__(self, k):
        self.k = k

    def begin(self, held=0):
        self.off = self.k == 0

    def plan(self, room):
        self.draft = min(self.k, room)
        return self

    def stop(self, i, confidence):
        return False

    def keep(self, drafted):
        return drafted

    def learn(self, plan, step):
        pass


def flat(*shares):
    """A drafter without confidence whose i-th token is accepted with the i-th probability, or the last."""
    return lambda i, dice: (math.nan, shares[min(i, len(shares) - 1)])


def sure(mean, spread=1.5):
    """A drafter that knows how often it is right; its confidences are drawn around `mean`."""

    def token(i, dice):
        p = min(max(dice.betavariate(mean * spread, (1 - mean) * spread), 0.001), 0.999)
        return p, p

    return token


def boastful(mean):
    """A drafter that is right half as often as it says."""
    token = sure(mean)

    def halved(i, dice):
        confidence, p = token(i, dice)
        return confidence, p / 2

    return halved


def tokens_per_second(policy, machine, drafter, tokens, seed, held=AFTER):
    """Run a policy until `tokens` tokens are decided, after a prompt of `held`."""
    dice = random.Random(seed)
    policy.begin(held)
    seconds, decided, before = 0.0, 0, 0
    while decided < tokens:
        plan = policy.plan(MOST)
        idle = policy.off
        shares, asked = [], 0
        while len(shares) < plan.draft:
            confidence, share = drafter(len(shares), dice)
            asked += 1
            if plan.stop(len(shares), confidence):
                break
            shares.append(share)
        drafted = plan.keep(len(shares))
        accepted = 0
        while accepted < drafted and dice.random() < shares[accepted]:
            accepted += 1
        rows = drafted + 1
        target = (machine.target(rows, held + decided) + machine.switch * (before != rows)) * math.exp(
            machine.noise * dice.gauss(0, 1)
        )
        in_drafter = 0.0 if idle else machine.feed + machine.draft * max(asked - 1, 0)
        spent = Seconds(target, in_drafter, machine.other)
        policy.learn(plan, Step(decided, range(drafted), accepted, range(accepted + 1), spent))
        before = rows
        decided += accepted + 1
        seconds += spent.total
    return decided / seconds


def best_fixed(machine, drafter, tokens, seed, held=AFTER):
    """(tokens per second, length) of the best fixed length, and those of plain decoding."""
    rates = [tokens_per_second(Fixed(k), machine, drafter, tokens, seed, held) for k in range(MOST + 1)]
    return max(rates), rates[0]
