"""One run in progress: the decode cycle's steps made into text, with the statistics that go with it.

Not the cycle (`speculate.py`) and not a session (`api.py`), which starts one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from refspec.decoding.cycle import prefill, speculate
from refspec.decoding.drafter import Drafter
from refspec.decoding.penalized_target import under
from refspec.decoding.text import Utf8Stream
from refspec.decoding.tree_cycle import speculate_tree
from refspec.errors import UsageError
from refspec.reference.metrics import Seconds, Statistics, Step
from refspec.reference.sampling import Sampler

if TYPE_CHECKING:
    from refspec.adaptive.policy import ChainPolicy
    from refspec.session import Session


class Event(NamedTuple):
    """What one verify step gave: the characters it completed (possibly none) and its record."""

    text: str
    step: Step


class Generation(Iterator[Event]):
    """One run in progress: iterate Events, one per verify step; every attribute is current at any moment.

    text        str   what the Events gave so far; a character whose bytes are not all decided yet is not in it
    tokens      [n]   ids decided so far, an end-of-generation token included
    prompt      [N]   ids the run began with
    target            the session's, under the sampler's penalties
    statistics        counts and seconds so far; `statistics.stop` says why it ended: length, end, context or interrupted
    """

    def __init__(
        self, session: Session, prompt: Sequence[int], drafter: Drafter | None, options: dict[str, object]
    ) -> None:
        self.text = ""
        self.tokens: list[int] = []
        self.prompt = list(prompt)
        self.statistics = Statistics(prompt_tokens=len(prompt))
        self._session, self._drafter, self._options = session, drafter, options
        self.target = under(session.target, cast(Sampler, options["sampler"]).penalties, prompt)
        self._stopping = False
        self._events = self._run()

    def __next__(self) -> Event:
        return next(self._events)

    def stop(self) -> None:
        """End after the call under way, keeping what was generated; safe to call from a signal handler."""
        self._stopping = True

    def _run(self) -> Iterator[Event]:
        target, statistics, session = self.target, self.statistics, self._session
        began = perf_counter()
        policy = cast("ChainPolicy | None", self._options.get("policy"))
        for _ in prefill(target, self._drafter, self.prompt, expect=None if policy is None else policy.expect):
            if self._stopping:
                statistics.stop = "interrupted"
                return
        statistics.prompt_seconds = perf_counter() - began
        stream = Utf8Stream()
        cycle: Any = speculate if self._drafter is None or session.tree is None else speculate_tree
        steps: Iterator[Step] = cycle(target, self._drafter, self.prompt[-1], **self._options)
        for step in steps:
            began = perf_counter()
            text = stream.push(b"".join([target.token_to_bytes(t) for t in step.tokens if t not in target.end_tokens]))
            if step.stop is not None:
                text += stream.close()
            self.text += text
            self.tokens += step.tokens
            # Making text is refspec's work too; what the caller does with it is not.
            target_s, drafter_s, other_s = step.seconds
            step = step._replace(seconds=Seconds(target_s, drafter_s, other_s + perf_counter() - began))
            statistics.add(step)
            statistics.stop = step.stop or "interrupted"
            yield Event(text, step)
            if self._stopping and step.stop is None:
                return
            if session.current is not self:
                raise UsageError("this generation was ended by a later one on the same session; open a second session")
        if not self.tokens:
            statistics.stop = "length"
