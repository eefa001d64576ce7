"""GrammarTarget: a Target whose logits are those of the outputs that match a grammar.

Its logits are the model's under a mask, or under the future validity too (`grammar/future.py`); penalties go inside.
What an output may go on with is a state of an automaton for every token held: rolling back needs nothing more.

Estimates that ask the model about continuations run them in the same cache, after the tokens they follow, and put back
what was there. Legend: T rows of the last decode, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import numpy as np

from refspec import native
from refspec.decoding.target import Target, Verifier
from refspec.decoding.wrapped_target import WrappedTarget
from refspec.grammar.constraint import ENDED, Constraint
from refspec.grammar.future import (
    MOST_FOLLOWED,
    OneStep,
    Place,
    Prefix,
    Probabilities,
    estimate_of,
    local,
    masked,
    transformed,
)
from refspec.grammar.tokens import DEAD, Tokens
from refspec.reference.ops import Array, Ids
from refspec.reference.sampling import Sampler
from refspec.reference.tree import ROOT, Tree

LONGEST_JUMP = 32  # tokens drafted because the grammar says so


class GrammarTarget(WrappedTarget):
    """`inner` under a constraint, for one output whose first token has position `first`."""

    def __init__(
        self, inner: Target, constraint: Constraint, first: int, *, sampler: Sampler, fidelity: str = "local",
        jumps: bool = True,
    ) -> None:  # fmt: skip
        """`jumps`: what is certain is drafted. UsageError for an unknown fidelity."""
        super().__init__(inner, first)
        self.constraint, self.jumps = constraint, jumps
        self.temperature = 1.0 if sampler.greedy else sampler.temperature
        plain = replace(sampler, temperature=self.temperature, top_k=0, top_p=1.0, min_p=0.0)
        self.p = lambda logits: native.p_target(logits, plain)
        self._bias = sampler.bias_ids, sampler.bias_values
        self._law = Continuations(inner, self.p, first, constraint)
        self.estimate = estimate_of(fidelity, constraint, self._law)
        self._follows = self.estimate is not local and not isinstance(self.estimate, OneStep)
        self._states = [constraint.start]  # after each number of output tokens
        self._places: list[Place | None] = []  # of the rows of the last decode
        self._rows: dict[int, Array] = {}  # rows that are transformed already
        self._features: Array | None = None
        self._certain: dict[bytes, list[int]] = {}

    def decode(self, tokens: Sequence[int] | Ids, *, logits: str = "all") -> int:
        """As of `inner`; the logits that follow are transformed."""
        rows = super().decode(tokens, logits=logits)
        start = self._start
        self._places, self._rows, self._features = [], {}, None
        if logits == "all":
            place = self._place(start)
            for token in self.text[start + 1 : start + rows].tolist():
                self._places.append(place)
                place = self.after(place, token)
            self._places.append(place)
            if self._follows:
                self._transform_all(start, rows)
        return rows

    def decode_tree(self, tokens: Sequence[int] | Ids, parents: Sequence[int] | Ids) -> int:
        """As of `inner`, a TreeTarget."""
        rows = super().decode_tree(tokens, parents)
        self._places, self._rows, self._features = [self._place(self._start)], {}, None
        for token, parent in zip(tokens[1:], parents, strict=True):
            self._places.append(self.after(self._places[int(parent) + 1], int(token)))
        return rows

    def logits(self, i: int) -> Array:
        """Transformed logits [V] of token i of the last decode; the model's own after an end or a mismatch."""
        if i not in self._rows:
            place, row = self._places[i], self.inner.logits(i)
            if place is None or place.state == ENDED:
                return row
            self._rows[i] = self._transformed(row, place)
        return self._rows[i]

    def rollback(self, n: int) -> None:
        """As of `inner`."""
        self.inner.rollback(n)
        del self._states[max(n - self.first, 0) + 1 :]

    def reset(self) -> None:
        """As of `inner`."""
        self.inner.reset()
        del self._states[1:]

    def features(self) -> Array:
        """As of `inner`."""
        return self.inner.features() if self._features is None else self._features

    def verifier(self, sampler: Sampler, seed: int) -> Verifier | None:
        """None: rows are transformed between the run and the rule."""
        return None

    def jump(self, pending: int, room: int) -> Ids:
        """Tokens that follow the pending one for certain, or spell what does: at most `room`, none unless `jumps`."""
        place = self.next_place(pending) if self.jumps else None
        if place is None or room < 1:
            return np.zeros(0, np.int32)
        tokens = self.constraint.forced(place.state, place.left)
        if not tokens and len(said := self.constraint.automaton.certain(place.state)) > 1:
            if said not in self._certain:
                self._certain[said] = self.inner.tokenize(said.decode("utf-8", "ignore"), add_special=False)
            tokens = self._certain[said]
        found = np.array(tokens[: min(room, LONGEST_JUMP)], np.int32)
        return found[: self.agreeing(pending, found)]

    def agreeing(self, pending: int, tokens: Ids) -> int:
        """How many of these tokens may follow the pending one."""
        place = self.next_place(pending)
        for i, token in enumerate(tokens.tolist()):
            place = self.after(place, token)
            if place is None:
                return i
        return len(tokens)

    def pruned(self, pending: int, tree: Tree) -> Tree:
        """The nodes of a tree that may follow the pending token."""
        places, kept = {ROOT: self.next_place(pending)}, list[int]()
        for node, (token, parent) in enumerate(zip(tree.tokens.tolist(), tree.parents.tolist(), strict=True)):
            places[node] = self.after(places[parent], token)
            if places[node] is not None:
                kept.append(node)
        return tree if len(kept) == len(tree.tokens) else tree.keep(kept)

    def next_place(self, pending: int) -> Place | None:
        """Where the output is after the pending token, which is not held yet."""
        self.text[self.inner.n_past] = pending
        return self._place(self.inner.n_past)

    def _place(self, position: int) -> Place | None:
        """Where the output is after the token at a position, whose own is in `text`."""
        n = position + 1 - self.first  # output tokens
        if n < 0:
            return None
        del self._states[max(n, 1) :]
        for i in range(len(self._states), n + 1):
            token, left = int(self.text[self.first + i - 1]), self.constraint.limit - i + 1
            self._states.append(self.constraint.step(self._states[-1], token, left))
        state = self._states[n]
        prefix = tuple(self.text[self.first : position + 1].tolist())
        return None if state in (DEAD, ENDED) else Place(prefix, state, self.constraint.limit - n)

    def after(self, place: Place | None, token: int) -> Place | None:
        """One token later; None after what does not match."""
        if place is None:
            return None
        state = self.constraint.step(place.state, token, place.left)
        return None if state == DEAD else place.after(token, state)

    def _transformed(self, logits: Array, place: Place) -> Array:
        row = self.constraint.allowed(place.state, place.left)
        if self.estimate is local or len(row.ids) <= 1 or (self._follows and len(row.ids) > MOST_FOLLOWED):
            return masked(logits, row)
        if isinstance(self.estimate, OneStep):
            phi = self.estimate.by_state(place, row, self._near(logits))
            return transformed(logits, row, phi, self.temperature, by_state=True)
        return transformed(logits, row, self.estimate(place, row, self.p(logits)), self.temperature)

    def _near(self, logits: Array) -> Array:
        """p(. | y) [V] as onestep needs it: in the type of the logits, and fast."""
        x = np.array(logits)
        if len(self._bias[0]):
            x[self._bias[0]] += self._bias[1]
        x -= x.max()
        if self.temperature != 1:
            x /= self.temperature
        np.exp(x, out=x)
        x /= x.sum()
        return x

    def _transform_all(self, start: int, rows: int) -> None:
        """Transform every row before continuations take its place."""
        self._rows = {i: np.array(self.inner.logits(i)) for i in range(rows)}
        self._features = np.array(self.inner.features()) if self.inner.capturing else None
        live = [(i, place) for i, place in enumerate(self._places) if place and place.state != ENDED]
        self._law.begin(self.text[: start + rows])
        for i, place in live:
            self._rows[i] = self._transformed(self._rows[i], place)
        self._law.end()


class Continuations:
    """The Law of a target: runs what it is asked about after the tokens decided, in the target's own cache.

    What must follow runs in the same call, and what was asked once is kept, as far as a constraint allows it.
    """

    def __init__(
        self, target: Target, p: Callable[[Array], Probabilities], first: int, constraint: Constraint
    ) -> None:  # fmt: skip
        self.target, self._p, self._first, self.constraint = target, p, first, constraint
        self._known: dict[Prefix, Probabilities] = {}
        self._text: list[int] = []  # what the target holds
        self._before: list[int] = []  # and held before

    def begin(self, text: Ids) -> None:
        """The target holds these tokens."""
        self._text = self._before = text.tolist()

    def end(self) -> None:
        """Put back what the target held."""
        self._hold(self._before, 0)

    def __call__(self, prefix: Prefix, ids: Tokens | None = None) -> Probabilities:
        """See `Law`; of the tokens allowed only."""
        if prefix not in self._known:
            place = Place((), self.constraint.start, self.constraint.limit)
            for token in prefix:
                place = place.after(token, self.constraint.step(place.state, token, place.left))
            certain = [t for t in self.constraint.forced(place.state, place.left) if t not in self.constraint.ends]
            certain = certain[:LONGEST_JUMP]
            self._hold([*self._before[: self._first], *prefix, *certain], 1 + len(certain))
            for i in range(len(certain) + 1):
                allowed = self.constraint.allowed(place.state, place.left).ids
                self._known[place.prefix] = self._p(self.target.logits(i))[allowed]
                if i < len(certain):
                    token = certain[i]
                    place = place.after(token, self.constraint.step(place.state, token, place.left))
        return self._known[prefix]

    def key(self, prefix: Prefix) -> Prefix:
        """See `Law`."""
        return prefix

    def _hold(self, text: list[int], last: int) -> None:
        """Have the target hold these tokens; so many of the last with new logits, alone in their decode."""
        same = 0
        while same < min(len(text) - last, len(self._text)) and text[same] == self._text[same]:
            same += 1
        if same < len(self._text):
            self.target.rollback(same)
        end = len(text) - last
        if same < end:
            self.target.decode(text[same:end], logits="none")
        if last:
            self.target.decode(text[end:], logits="all")
        self._text = text


class DraftGrammar:
    """What a drafter may draft: its logits under the mask. `begin` comes before every draft."""

    def __init__(self, target: GrammarTarget) -> None:
        self.target = target
        self._place: Place | None = None
        self._drafted: dict[int, Ids] = {}  # of a draft vocabulary: [V] its ids, -1 outside

    def begin(self, pending: int) -> None:
        """A draft is about to follow the pending token."""
        self._place = self.target.next_place(pending)

    def __call__(self, logits: Array, drafted: Sequence[int], d2t: Ids | None = None) -> Array | None:
        """Logits [D] after `drafted`, -inf for what may not follow; None where nothing may. d2t [D] are target ids."""
        place = self._place
        for token in drafted:
            place = self.target.after(place, token)
        if place is None:
            return None
        ids: Ids = self.target.constraint.allowed(place.state, place.left).ids
        if d2t is not None:
            if id(d2t) not in self._drafted:
                inverse = np.full(self.target.n_vocab, -1, np.int64)
                inverse[d2t] = np.arange(len(d2t))
                self._drafted[id(d2t)] = inverse
            ids = self._drafted[id(d2t)][ids]
            ids = ids[ids >= 0]
        else:
            ids = ids[ids < len(logits)]
        if not len(ids):
            return None
        out: Array = np.full(len(logits), -np.inf, logits.dtype)
        out[ids] = logits[ids]
        return out


@runtime_checkable
class MindsGrammar(Protocol):
    """A drafter whose chains are drafted within `grammar`, while it is not None."""

    grammar: DraftGrammar | None
