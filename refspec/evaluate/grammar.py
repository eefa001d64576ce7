"""How far outputs are from what a grammar means, by estimate of future validity, and what that costs.

What is meant is the model given that its output is valid; the distance is total variation, computed by enumeration:
every valid output of a small language, on made-up laws and with the probabilities of a loaded model.

Legend: V vocabulary, A tokens that a language has at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from refspec import native
from refspec.decoding.cycle import prefill
from refspec.decoding.target import Target
from refspec.grammar.automaton import automaton
from refspec.grammar.constraint import ENDED, Constraint
from refspec.grammar.future import (
    Beam,
    Prefix,
    Probabilities,
    Rollouts,
    estimate_of,
    masked,
    sequence_law,
    variation,
    variation_at_most,
    wanted,
)
from refspec.grammar.gbnf import dyck
from refspec.grammar.json_schema import json_schema
from refspec.grammar.regex import regex
from refspec.grammar.tokens import ByteTokens, Tokens, Vocabulary
from refspec.reference.sampling import Sampler, coins
from refspec.session import Session

LARGEST = 128_000  # tokens of a large vocabulary
KINDS = (
    "local",
    "onestep",
    "lookahead:1",
    "lookahead:2",
    "lookahead:4",
    "beam:1",
    "beam:2",
    "beam:4",
    "beam:8",
    "exact",
)
SIZES = ((1, 9), (2, 9), (2, 11), (4, 11))  # depth of brackets, most tokens with the end
SEEDS = 20
CLASSIFIED: dict[str, Any] = {
    "type": "object",
    "properties": {
        "mood": {"enum": ["very happy", "happy", "neutral", "sad", "very sad"]},
        "urgent": {"type": "boolean"},
        "topic": {"enum": ["delivery", "delivery time", "price", "quality"]},
    },
    "required": ["mood", "urgent", "topic"],
}
EXTRACTED: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 30},
        "date": {"type": "string", "format": "date"},
        "items": {"type": "array", "items": {"type": "string", "maxLength": 20}, "maxItems": 5},
    },
    "required": ["name", "date", "items"],
}
MESSAGE = (
    "Classify this message as JSON with mood, urgent and topic: My parcel is three weeks late and nobody answers. "
    "I need it tomorrow!"
)
PARAGRAPH = (
    "Extract the name, the date and the items from this text as JSON.\n\n"
    "On 2024-03-17 Maria Lopez bought apples, two pears and a loaf of bread at the market."
)
BRACKETS = "Continue with balanced brackets."
TOWNS, QUESTION = "(Paris, Texas|Lyon|Marseille)", "What is the capital of France? Answer with the name only."


class MadeUp:
    """A law of random rows: of the last token only (`markov`), or of the whole prefix."""

    def __init__(self, vocab: int, seed: int, *, markov: bool, scale: float = 1.5) -> None:
        self.vocab, self.seed, self.markov, self.scale = vocab, seed, markov, scale
        self._known: dict[Prefix, Probabilities] = {}

    def __call__(self, prefix: Prefix, ids: Tokens | None = None) -> Probabilities:
        """See `Law`."""
        key = self.key(prefix)
        if key not in self._known:
            x = np.random.default_rng([self.seed, *key]).normal(size=self.vocab) * self.scale
            weights = np.exp(x - x.max())
            self._known[key] = weights / weights.sum()
        return self._known[key] if ids is None else self._known[key][ids]

    def key(self, prefix: Prefix) -> Prefix:
        """See `Law`."""
        return prefix[-1:] if self.markov else prefix


class Modelled:
    """The law of a loaded model after a prompt, for the tokens A of a language; other tokens have 0 here."""

    def __init__(self, target: Target, prompt: Sequence[int], constraint: Constraint) -> None:
        self.target, self.prompt, self.rows = target, list(prompt), 0
        states, ids, left = {constraint.start}, set(constraint.ends.tolist()), [constraint.start]
        for state in left:
            row = constraint.allowed(state, constraint.limit)
            ids |= set(row.ids.tolist())
            new = {q for q in row.next.tolist() if q != ENDED} - states
            states |= new
            left += new
        self.alphabet = np.array(sorted(ids))
        self._known: dict[Prefix, Probabilities] = {}
        self._held: list[int] = []
        for _ in prefill(target, None, self.prompt):
            pass

    def __call__(self, prefix: Prefix, ids: Tokens | None = None) -> Probabilities:
        """See `Law`."""
        if prefix not in self._known:
            text = [self.prompt[-1], *prefix]
            same = 0
            while same < min(len(text) - 1, len(self._held)) and text[same] == self._held[same]:
                same += 1
            if same < len(self._held):
                self.target.rollback(len(self.prompt) - 1 + same)
            if same < len(text) - 1:
                self.target.decode(text[same:-1], logits="none")
            self.target.decode(text[-1:], logits="all")
            self._held = text
            self.rows += 1
            self._known[prefix] = native.p_target(self.target.logits(0), Sampler(temperature=1.0))[self.alphabet]
        p = np.zeros(self.target.n_vocab)
        p[self.alphabet] = self._known[prefix]
        return p if ids is None else p[ids]

    def key(self, prefix: Prefix) -> Prefix:
        """See `Law`."""
        return prefix


class _Coins:
    """New coins at every call."""

    def __init__(self, seed: int) -> None:
        self.seed, self.drawn = seed, 0

    def __call__(self, prefix: Prefix, n: int) -> Probabilities:
        self.drawn += n
        return coins(self.seed, self.drawn - n, n)


def made_up(progress: Callable[[], None] = lambda: None) -> list[dict[str, Any]]:
    """Brackets under random laws: for each size and kind of law the mean TV of each estimate, and where it wins."""
    vocabulary = Vocabulary([b"(", b")", b"x", b""], {3})
    found = []
    for depth, limit in SIZES:
        tokens = ByteTokens(automaton(dyck("()", depth)), vocabulary)
        constraint = Constraint(tokens, vocabulary.ends, limit)
        for markov in (True, False):
            distances = {kind: list[float]() for kind in (*KINDS, "rollouts:8")}
            outputs = 0
            for seed in range(SEEDS):
                law = MadeUp(4, seed, markov=markov)
                meant = wanted(constraint, law)
                outputs = len(meant)
                for kind in KINDS:
                    got = sequence_law(constraint, law, estimate_of(kind, constraint, law))
                    distances[kind].append(variation(got, meant))
                proposal = MadeUp(4, seed + 1000, markov=True)
                drawn = Rollouts(constraint, law, proposal, 8, _Coins(seed))
                distances["rollouts:8"].append(variation(sequence_law(constraint, law, drawn), meant))
            local = np.array(distances["local"])
            found.append(
                {
                    "language": f"brackets {depth} deep, {limit - 1} tokens", "outputs": outputs,
                    "law": "last token" if markov else "whole prefix",
                    "tv": {kind: float(np.mean(x)) for kind, x in distances.items()},
                    "better_than_local": {kind: float(np.mean(np.array(x) < local)) for kind, x in distances.items()},
                }
            )  # fmt: skip
            progress()
    return found


def modelled(session: Session, name: str, constraint: Constraint, prompt: Sequence[int]) -> dict[str, Any]:
    """One language under the session's model: the TV of each estimate, the rows of the model, and a beam's bound."""
    target = session.target
    tv, bound = dict[str, float](), dict[str, float]()
    law = Modelled(target, prompt, constraint)
    meant, shown = wanted(constraint, law), dict[str, dict[Prefix, float]]()
    for kind in KINDS:
        estimate = estimate_of(kind, constraint, law)
        got = shown[kind] = sequence_law(constraint, law, estimate)
        tv[kind] = variation(got, meant)
        if isinstance(estimate, Beam):
            bound[kind] = _bound(estimate, constraint)
    about = {"language": name, "outputs": len(meant), "law": Path(session.name).name, "rows": law.rows}
    return about | {"tv": tv, "bound": bound, "likeliest": _likeliest(session, shown)}


def _likeliest(session: Session, laws: Mapping[str, Mapping[Prefix, float]], most: int = 3) -> list[dict[str, Any]]:
    """The outputs that are likeliest by what is meant and by a mask, with their probabilities by each estimate."""
    ends, pieces = session.target.end_tokens, session.grammars.vocabulary.pieces
    spelled: dict[str, dict[str, float]] = {}
    for kind, law in laws.items():
        for output, p in law.items():
            text = b"".join(pieces[token] for token in output if token not in ends).decode("utf-8", "replace")
            spelled.setdefault(text, dict.fromkeys(laws, 0.0))[kind] += p
    best = [sorted(spelled, key=lambda text: -spelled[text][kind])[:most] for kind in ("exact", "local")]
    return [{"text": text} | spelled[text] for text in dict.fromkeys([*best[0], *best[1]])]


def _bound(beam: Beam, constraint: Constraint) -> float:
    """The TV at most, by what the beam knows of every Phi it was asked for."""
    errors = [max(np.log(most / phi), np.log(phi / least)) for phi, least, most in beam.known.values() if least > 0]
    return variation_at_most(max(errors, default=0.0), constraint.limit) if len(errors) == len(beam.known) else 1.0


def distances(session: Session, progress: Callable[[], None] = lambda: None) -> list[dict[str, Any]]:
    """Languages under the session's own model: all ways to cut brackets and three towns into tokens, and JSON."""
    grammars, found = session.grammars, list[dict[str, Any]]()
    for name, grammar, limit, prompt in (
        ("brackets 1 deep, 4 tokens", dyck("()", 1), 5, BRACKETS),
        ("brackets 2 deep, 4 tokens", dyck("()", 2), 5, BRACKETS),
        ("JSON as the model cuts it", json_schema(CLASSIFIED), 64, MESSAGE),
        ("three towns", regex(TOWNS), 14, QUESTION),
    ):  # fmt: skip
        how = "exact" if prompt is MESSAGE else "local"
        found.append(modelled(session, name, grammars.constraint(grammar, limit, how), session.encode(prompt)))
        progress()
    return found


def speeds(
    session: Session, *, max_tokens: int, repeat: int, progress: Callable[[], None] = lambda: None
) -> list[dict[str, Any]]:  # fmt: skip
    """Tokens a second of one output: without a grammar, within one, with guesses, and by llama.cpp's own sampler."""
    from refspec.llama.grammar_sampler import constrained, gbnf_of_schema

    schema = json_schema(EXTRACTED)
    ways: dict[str, dict[str, Any]] = {
        "no grammar": {"speculate": False},
        "local": {"grammar": schema, "speculate": False},
        "onestep": {"grammar": schema, "speculate": False, "fidelity": "onestep"},
        "local, with guesses": {"grammar": schema},
    }
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in (*ways, "llama.cpp's grammar sampler")}
    prompt = session.encode(PARAGRAPH)
    gbnf = gbnf_of_schema(json.dumps(EXTRACTED))
    for _ in range(repeat):
        for way, how in ways.items():
            if how.get("speculate", True) and session.drafter is None:
                continue
            generation = session.generate(tokens=prompt, max_tokens=max_tokens, **how)
            for _event in generation:
                pass
            seconds = generation.statistics.seconds
            runs[way].append(
                {"tokens": len(generation.tokens), "seconds": sum(seconds), "other": seconds.other,
                 "calls": generation.statistics.verify_steps, "text": generation.text}
            )  # fmt: skip
            progress()
        session.target.capturing = False
        for _done in prefill(session.target, None, prompt):
            pass
        began = perf_counter()
        tokens = list(constrained(session.target, prompt[-1], gbnf, max_tokens))  # type: ignore[arg-type]
        took = perf_counter() - began
        ends = session.target.end_tokens
        text = b"".join(session.target.token_to_bytes(t) for t in tokens if t not in ends).decode("utf-8", "replace")
        runs["llama.cpp's grammar sampler"].append(
            {"tokens": len(tokens), "seconds": took, "other": took, "calls": len(tokens), "text": text}
        )
        progress()
    return [_fastest(way, tried) for way, tried in runs.items() if tried]


def tables(session: Session) -> list[dict[str, Any]]:
    """Seconds that automata take for this model's vocabulary, and for one made as large as the largest in use."""
    pieces = session.grammars.vocabulary.pieces
    rng = np.random.default_rng(0)
    more = [rng.integers(97, 123, rng.integers(3, 10)).astype(np.uint8).tobytes() for _ in range(LARGEST - len(pieces))]
    found = []
    for spelled in (pieces, [*pieces, *more]):
        began = perf_counter()
        vocabulary = Vocabulary(spelled, session.target.end_tokens)
        seconds = {"trie": perf_counter() - began}
        began = perf_counter()
        language = automaton(json_schema(EXTRACTED))
        seconds["bytes"] = perf_counter() - began
        began = perf_counter()
        tokens = ByteTokens(language, vocabulary)
        seconds["tokens"] = perf_counter() - began
        widest = max(range(language.dead), key=lambda q: int((language.next[q] != language.dead).sum()))
        began = perf_counter()
        row = tokens.row(widest)
        seconds["a state's row"] = perf_counter() - began
        logits = np.zeros(len(spelled), np.float32)
        masked(logits, row)
        began = perf_counter()
        for _ in range(100):
            masked(logits, row)
        seconds["a mask"] = (perf_counter() - began) / 100
        found.append({"vocabulary": len(spelled), "states": language.dead, "allowed": len(row.ids), "seconds": seconds})
    return found


def _fastest(way: str, tried: list[dict[str, Any]]) -> dict[str, Any]:
    """The fastest of some runs of the same output."""
    best = min(tried, key=lambda run: run["seconds"])
    return {"way": way, "tokens_per_second": best["tokens"] / best["seconds"]} | best
