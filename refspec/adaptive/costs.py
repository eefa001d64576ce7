"""What a decode step costs here, by the tokens verified and drafted: measured by `tune`, or learned as it runs.

The model of one step that verifies a batch of r tokens, for which the drafter ran c chained tokens:

    seconds = (target(r) + (cache + attention * r) * (context - after)) * drift
            + switch (only if the batch before had another size) + feed + draft * c + other

llama.cpp rebuilds its compute graph when the batch size changes, hence `switch`. Weights are read once for all tokens
of a batch, and so is the cache of the context, `cache` seconds a position, but every token attends to the whole of it:
`attention` is what a position costs a token. Both are slopes of decayed least squares over all sizes and contexts seen.
`drift` is one factor for all sizes, because a hotter processor or another program slows them alike, and only some sizes
are seen. Averages are exponential. What disturbs a step makes it slower, and a size that was seen once may have been
disturbed: of its first FIRSTS observations the median counts, the lower of two. An unknown size is interpolated between
its known neighbours; beyond them each token adds what the known ones add. Not a policy: `adaptive/policy.py` decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ROW_SHARE = 0.25  # of one token's cost, what another token is taken to add before any is measured
SLOWEST = 0.03  # weight of a new observation in an old average
OWN = 0.06  # the same of refspec's own seconds
TICK = 1e-9  # seconds: less than any clock tells, so that ratios exist
DRIFT = 0.1  # weight of a new observation in the drift
AFTER = 128  # positions before the batch that `target` is the cost of, unless it says otherwise
LEAST = 0.2  # of target(r), what remains of it in a shorter context
SLOW = 0.005  # weight of a new observation in the slopes
STIFF = 0.005  # (1000 positions)^2, what holds the slopes where little is known
ALIKE = 1e-9  # of the whole, what must be left of it for two slopes to be told apart
STEEPEST = 4.0  # times the cost of a single token, the most that 1000 positions may add to it by either slope
FIRSTS = 3
DOUBTED = 2  # observations that an old cost is worth
NUMBERS = "switch", "drift", "cache", "attention"  # kept as they are from one process to the next
OUTLIER = 3.0  # an observation counts as at most so many times what was expected


class Costs:
    """The learned model; `rows[r]` are seconds of a batch of r tokens, `seen[r]` counts its observations."""

    def __init__(
        self, target: Mapping[int, float] | None = None, *, switch: float = 0.0, draft: float = 0.0,
        feed: float = 0.0, after: int = AFTER,
    ) -> None:  # fmt: skip
        """Nothing known, or what was measured `after` so many positions: the seconds of the terms."""
        self.after = after
        self.rows: dict[int, float] = dict(target or {})
        self.seen: dict[int, int] = {r: 4 for r in self.rows}
        self._firsts: dict[int, list[float]] = {}  # the first observations of a size, as `rows` are
        self._clean = set(self.rows)  # sizes seen without a switch
        self.switch, self.drift = switch, 1.0
        self.context = after  # positions before the batch that is asked about
        self.cache = self.attention = 0.0  # seconds a position costs a step and each of its tokens, before `drift`
        # Decayed sums of n, x, y, z, x^2, xy, y^2, xz, yz for z = level + attention x + cache y, shares of target(r).
        self._slopes = [0.0] * 9
        self.other: dict[bool, float] = {}  # by whether anything was drafted
        self._switches = 1 if target else 0
        self._drafter = [0.0] * 5  # decayed sums of n, c, y, c^2, c y for the drafter's seconds y = feed + draft c
        self._given = (feed, draft) if feed or draft else None
        self._guessed = False  # whether these are guesses of an earlier process

    @property
    def comparable(self) -> bool:
        """Whether plain decoding's cost is known: seen with and without a change of size, or by an earlier process."""
        return self._guessed or self.seen.get(1, 0) >= 2

    def target(self, r: int) -> float:
        """Seconds of a run over r tokens, the batch size being that of the run before."""
        shape = self._shape(r)
        return max(shape + self._of_context(r), LEAST * shape) * self.drift

    def hoped(self, r: int) -> float:
        """The same, but of a size seen fewer than FIRSTS times, perhaps disturbed, no more than its neighbours say."""
        if r == 1 or not 0 < self.seen.get(r, 0) < FIRSTS or len(self.rows) < 2:
            return self.target(r)
        seen = self.rows.pop(r)
        between = self._shape(r)
        self.rows[r] = seen
        return self.target(r) * min(between / seen, 1.0)

    def _of_context(self, r: int) -> float:
        return (self.cache + self.attention * r) * (self.context - self.after)

    def _shape(self, r: int) -> float:
        known = self.rows
        if r in known:
            return known[r]
        if not known:
            return 1.0 + ROW_SHARE * (r - 1)
        below, above = max((x for x in known if x < r), default=None), min((x for x in known if x > r), default=None)
        if below is None:
            assert above is not None
            return known[above] * (1 + ROW_SHARE * (r - 1)) / (1 + ROW_SHARE * (above - 1))
        if above is None:
            first = min(known)
            slope = ROW_SHARE * known[below] / (1 + ROW_SHARE * (below - 1))
            if below > first:
                slope = (known[below] - known[first]) / (below - first)
            return known[below] + max(slope, 0.0) * (r - below)
        return known[below] + (known[above] - known[below]) * (r - below) / (above - below)

    @property
    def drafter(self) -> tuple[float, float]:
        """(seconds fed back per step, seconds per chained token), by decayed least squares."""
        n, c, y, cc, cy = self._drafter
        if n == 0:
            return self._given or (0.0, 0.0)
        c, y, cc, cy = c / n, y / n, cc / n, cy / n
        # a token fed back costs like a chained one, until lengths vary
        guess = self._given[1] if self._given else y / (c + 1)
        slope = (cy - c * y + 0.1 * guess) / (cc - c * c + 0.1)
        slope = min(max(slope, 0.0), y / c if c else guess)
        return max(y - slope * c, 0.0), slope

    def plain(self) -> float:
        """Seconds of a step of plain decoding, the drafter left alone."""
        return self.target(1) + self.own(False)

    def step(self, k: int) -> float:
        """Seconds of a step that drafts k tokens, after a step of as many."""
        feed, draft = self.drafter
        return self.target(k + 1) + feed + draft * max(k - 1, 0) + self.own(k > 0)

    def own(self, drafted: bool) -> float:
        """refspec's own seconds; the other kind's while none of this kind was seen, or it would look cheaper."""
        return self.other.get(drafted, self.other.get(not drafted, 0.0))

    def doubt(self, r: int) -> None:
        """What r tokens cost was seen long ago: what is seen next counts for more."""
        self.seen[r] = min(self.seen.get(r, 0), DOUBTED)
        self._firsts.pop(r, None)

    def learn(
        self, k: int, before: int, target: float, drafter: float | None, other: float | None, chained: int | None = None
    ) -> None:
        """One step: k drafted tokens, a batch of `before` before it, seconds by who spent them (None: not typical).

        The drafter ran `chained` tokens, k - 1 if not given.
        """
        r, target = k + 1, max(target, TICK)
        switched = before != r
        expected = self.target(r)
        count = self.seen.get(r, 0)
        if not switched and count and r not in self._clean:
            self.rows[r] = self._at_after(r, target)  # what was seen before was with the switch
            self._firsts[r] = [self.rows[r]]
            self.switch += (max(expected - target, 0.0) - self.switch) / (self._switches + 1)
            self._switches += 1
        elif switched and r in self._clean:
            extra = min(max(target - expected, 0.0), OUTLIER * expected)
            self._switches += 1
            self.switch += (extra - self.switch) * max(1 / self._switches, SLOWEST)
        else:
            value = max(target - self.switch, 0.3 * target) if switched else target
            if not count:
                self.rows[r] = self._at_after(r, value)
                self._firsts[r] = [self.rows[r]]
            elif count < FIRSTS and r in self._firsts:
                firsts = sorted([*self._firsts[r], self._at_after(r, value)])
                self._firsts[r], self.rows[r] = firsts, firsts[(len(firsts) - 1) // 2]
            else:
                ratio = min(max(value / expected, 1 / OUTLIER), OUTLIER)
                weight = 0.9 / (count + 1)  # that of an average, but what all sizes share is left to the drift
                self.rows[r] *= ratio ** (weight if count < FIRSTS else max(min(weight, DRIFT), SLOWEST))
                if count >= FIRSTS:
                    self.drift *= ratio**DRIFT
                    self._see_context(r, min(max(value, expected / OUTLIER), OUTLIER * expected))
        if not switched:
            self._clean.add(r)
        self.seen[r] = count + 1
        if drafter is not None:
            self._add_drafter(max(k - 1, 0) if chained is None else chained, drafter)
        if other is not None:
            known = self.other.get(k > 0, other)
            self.other[k > 0] = known + OWN * (other - known)

    def _at_after(self, r: int, seconds: float) -> float:
        """What r tokens that took so long would have taken `after` positions, before the drift."""
        undrifted = seconds / self.drift
        return max(undrifted - self._of_context(r), LEAST * undrifted)

    def _see_context(self, r: int, seconds: float) -> None:
        """Learn what a position costs a step and each of its tokens: r took so long after `context` positions."""
        one, shape = self._shape(1), self._shape(r)
        # positions cost a share of a single token
        y, z = (self.context - self.after) / 1000 * one / shape, seconds / shape
        x = r * y
        for i, value in enumerate((1.0, x, y, z, x * x, x * y, y * y, x * z, y * z)):
            self._slopes[i] = self._slopes[i] * (1 - SLOW) + value
        n, x, y, z, *products = self._slopes
        x, y, z, (xx, xy, yy, xz, yz) = x / n, y / n, z / n, (p / n for p in products)
        xx, xy, yy, xz, yz = xx - x * x + STIFF, xy - x * y, yy - y * y + STIFF, xz - x * z, yz - y * z
        whole = xx * yy - xy * xy
        apart = whole > ALIKE * xx * yy  # else one size only was seen
        token, step = ((xz * yy - yz * xy) / whole, (yz * xx - xz * xy) / whole) if apart else (xz / xx, 0.0)
        if token < 0 or step < 0:  # neither takes time away: then one of them explains it all
            token, step = (0.0, max(yz / yy, 0.0)) if token < step else (max(xz / xx, 0.0), 0.0)
        level = max(z - token * x - step * y, LEAST * z)  # the average drift of what is remembered
        self.attention, self.cache = (min(slope / level, STEEPEST) * one / 1000 for slope in (token, step))

    def _add_drafter(self, c: int, y: float) -> None:
        for i, value in enumerate((1.0, float(c), y, float(c * c), c * y)):
            self._drafter[i] = self._drafter[i] * (1 - SLOWEST) + value

    def state(self) -> dict[str, Any]:
        """All that is known, for `resumed`."""
        return {name: getattr(self, name) for name in NUMBERS} | {
            "after": self.after, "rows": list(self.rows.items()), "switches": self._switches, "slopes": self._slopes,
            "other": list(self.other.items()), "drafter": self._drafter, "given": self._given,
        }  # fmt: skip

    @classmethod
    def resumed(cls, state: Mapping[str, Any]) -> Costs:
        """Costs that guess from `state` until a size is seen; ValueError, KeyError or TypeError for a damaged one."""
        costs = cls({int(r): float(t) for r, t in state["rows"]}, after=int(state["after"]))
        costs.seen, costs._clean, costs._guessed = dict.fromkeys(costs.rows, 0), set(), 1 in costs.rows
        for name in NUMBERS:
            setattr(costs, name, float(state[name]))
        costs._switches = int(state["switches"])
        costs.other = {bool(drafted): float(t) for drafted, t in state["other"]}
        costs._slopes, costs._drafter = ([float(x) for x in state[name]] for name in ("slopes", "drafter"))
        given = state["given"]
        costs._given = None if given is None else (float(given[0]), float(given[1]))
        if not all(t > 0 for t in (*costs.rows.values(), costs.drift)) or costs.switch < 0:
            raise ValueError("costs are above 0")
        if (len(costs._slopes), len(costs._drafter)) != (9, 5):
            raise ValueError("sums are missing")
        return costs

    @classmethod
    def of(cls, record: Mapping[str, Any] | None) -> Costs:
        """What a record of `tune` or `step_costs.measure` says, or nothing known."""
        if not record:
            return cls()
        rows = {int(r): float(t) for r, t in record["target"].items()}
        terms = {name: float(record[name]) for name in ("switch", "draft", "feed")}
        costs = cls(rows, after=int(record.get("after", AFTER)), **terms)
        if "own" in record:  # `tune` has generated
            costs.other = {True: float(record["own"]), False: float(record["own_plain"])}
        return costs
