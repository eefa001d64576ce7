"""One run in progress: the decode cycle's steps made into text, with the statistics that go with it.

Not the cycle (`cycle.py`) and not a session (`refspec/session.py`), which starts one.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any, NamedTuple

from refspec.decoding.cycle import prefill, speculate
from refspec.decoding.drafter import Drafter
from refspec.decoding.grammar_target import GrammarTarget
from refspec.decoding.kept import Kept
from refspec.decoding.penalized_target import under
from refspec.decoding.target import Target
from refspec.decoding.text import Utf8Stream
from refspec.decoding.tree_cycle import speculate_tree
from refspec.decoding.wrapped_target import WrappedTarget
from refspec.errors import UsageError
from refspec.grammar.constraint import Constraint
from refspec.reference.metrics import Seconds, Statistics, Step


class Event(NamedTuple):
    """What one verify step gave: the characters it completed (possibly none) and its record."""

    text: str
    step: Step


class Latest:
    """Which generation on a target was started last, keeping none of them alive; and whose turn on it is under way."""

    def __init__(self) -> None:
        self._generation: weakref.ref[Generation] | None = None
        self._turn = threading.Lock()

    @contextmanager
    def turn(self, *, wait: bool = False) -> Iterator[None]:
        """Around all that uses the models: two threads in them at once end the process.

        The second gets a UsageError, because a generation that waited for its turn would end the one it waited for;
        with `wait` it waits, which is for closing.
        """
        if not self._turn.acquire(blocking=wait):
            raise UsageError(
                "another thread is using this session, which takes one caller at a time; open a second session for it"
            )
        try:
            yield
        finally:
            self._turn.release()

    def start(self, generation: Generation) -> None:
        """This one is the last from now on."""
        self._generation = weakref.ref(generation)

    def __call__(self, generation: Generation) -> bool:
        """Whether none was started after this one."""
        return self._generation is not None and self._generation() is generation


class Generation(Iterator[Event]):
    """One run in progress: iterate Events, one per verify step; every attribute is current at any moment.

    It keeps the models alive, not the session, and is part of no reference cycle.

    text        str   what the Events gave so far, without a character whose bytes are not all decided yet
    tokens      [n]   ids decided so far, an end-of-generation token included
    prompt      [N]   ids the run began with
    target            the session's, under the sampler's penalties
    statistics        counts and seconds so far; `statistics.stop` says why it ended: length, end, context, interrupted
    """

    def __init__(
        self, target: Target, drafter: Drafter | None, prompt: Sequence[int], options: Mapping[str, Any], *,
        trees: bool, is_latest: Latest, kept: Kept, constraint: Constraint | None = None, fidelity: str = "local",
    ) -> None:  # fmt: skip
        """`options` are those of `speculate`, or with `trees` of `speculate_tree`; `kept` is of the run before.

        `constraint` is as in GrammarTarget.
        """
        self.text = ""
        self.tokens: list[int] = []
        self.prompt = list(prompt)
        self.statistics = Statistics(prompt_tokens=len(prompt))
        self.target = under(target, options["sampler"].penalties, prompt)
        if constraint is not None:
            self.target = GrammarTarget(
                self.target, constraint, len(prompt), sampler=options["sampler"], fidelity=fidelity,
                jumps=drafter is not None,
            )  # fmt: skip
        self._drafter, self._options, self._trees, self._is_latest = drafter, options, trees, is_latest
        self._kept = kept
        self._steps: Iterator[Step] | None = None  # once the prompt has been read
        self._stream = Utf8Stream()
        self._stopping = self._ended = False
        is_latest.start(self)

    def stop(self) -> None:
        """End after the call under way, keeping what was generated; safe to call from a signal handler."""
        self._stopping = True

    def __next__(self) -> Event:
        """Run one verify step, the prompt before the first; UsageError after a later generation was started.

        UsageError, too, while another thread is in the session; the generation can go on after that.
        """
        with self._is_latest.turn():
            return self._next()

    def _next(self) -> Event:
        if self._ended:
            raise StopIteration
        self._ended = True  # unless this step succeeds and another follows
        if not self._stopping and not self._is_latest(self):
            raise UsageError("this generation was ended by a later one on the same session; open a second session")
        try:
            step = self._next_step()
        except BaseException:
            self._kept.forget()  # what target and drafter hold may be of different steps
            raise
        if step is None:
            raise StopIteration
        self._ended = step.stop is not None
        began, ends = perf_counter(), self.target.end_tokens
        text = self._stream.push(b"".join([self.target.token_to_bytes(t) for t in step.tokens if t not in ends]))
        if self._ended:
            text += self._stream.close()
        self.text += text
        self.tokens += step.tokens
        # Making text is refspec's work too; what the caller does with it is not.
        target_s, drafter_s, other_s = step.seconds
        step = step._replace(seconds=Seconds(target_s, drafter_s, other_s + perf_counter() - began))
        self.statistics.add(step)
        self.statistics.stop = step.stop or "interrupted"
        return Event(text, step)

    def _next_step(self) -> Step | None:
        """The next verify step; None where the run ends without one."""
        if self._steps is None:
            began, policy = perf_counter(), self._options.get("policy")
            held = self._kept.take(self.target, self._drafter, self.prompt, surveyed=policy is not None)
            self.statistics.prompt_kept = held
            if isinstance(self.target, WrappedTarget):
                self.target.holding(self.prompt[:held])
            expect = policy.expect if policy else None
            for _ in prefill(self.target, self._drafter, self.prompt, held=held, expect=expect):
                if self._stopping:
                    break
            self.statistics.prompt_seconds = perf_counter() - began
            cycle: Any = speculate_tree if self._trees else speculate
            self._steps = cycle(self.target, self._drafter, self.prompt[-1], **self._options)
        if self._stopping:
            self.statistics.stop = "interrupted"
            return None
        step = next(self._steps, None)
        if step is None:  # no token was wanted
            self.statistics.stop = "length"
        return step
