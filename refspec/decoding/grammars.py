"""Grammars over one target's tokens, with what is made of them once and used for every output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from refspec.decoding.target import Target
from refspec.errors import UsageError
from refspec.grammar.automaton import automaton
from refspec.grammar.constraint import Constraint
from refspec.grammar.future import fidelity
from refspec.grammar.nodes import Grammar
from refspec.grammar.tokens import ByteTokens, TokenAutomaton, Vocabulary
from refspec.grammar.trie import TokenTrie, trie_of

KEPT = 8  # automata
MOST_STRINGS = 10_000  # of an exact sum


class Grammars:
    """The automata of a target. `cache`: where tables are kept between sessions."""

    def __init__(self, target: Target, cache: Path | None = None) -> None:
        self.target, self.cache = target, cache
        self._vocabulary: Vocabulary | None = None
        self._made: list[tuple[Grammar, ByteTokens]] = []  # the newest last

    @property
    def vocabulary(self) -> Vocabulary:
        """The target's tokens."""
        if self._vocabulary is None:
            pieces = [self.target.token_to_bytes(token) for token in range(self.target.n_vocab)]
            self._vocabulary = Vocabulary(pieces, self.target.end_tokens)
        return self._vocabulary

    def tokens(self, grammar: Grammar) -> ByteTokens:
        """Every way to cut the strings of a grammar into tokens."""
        for known, made in self._made:
            if known == grammar:
                return made
        made = ByteTokens(automaton(grammar), self.vocabulary, self.cache)
        self._made = [*self._made[1 - KEPT :], (grammar, made)]
        return made

    def trie(self, grammar: Grammar) -> TokenTrie:
        """The strings of a grammar as the model cuts them; UsageError for too many, and for what it cannot spell."""
        strings = self.tokens(grammar).language.strings(MOST_STRINGS)
        if strings is None:
            raise UsageError(
                f"fidelity exact is for languages of at most {MOST_STRINGS} strings, and this has more; use beam:4 or "
                "local"
            )
        trie = trie_of(strings, self._tokenize, self.vocabulary.pieces)
        if trie is None:
            raise UsageError("fidelity exact: the model's tokens for these strings spell something else; use beam:4")
        return trie

    def constrained(self, grammar: Grammar | None, how: str, limit: int, *, trees: bool) -> dict[str, Any]:
        """What a Generation of at most so many tokens is told; UsageError for a fidelity that cannot be kept."""
        kind, _ = fidelity(how)
        if grammar is None:
            if kind != "local":
                raise UsageError(f"fidelity {how} is about a grammar, and there is none; give a grammar")
            return {}
        if trees and kind not in ("local", "onestep"):
            raise UsageError(f"fidelity {how} runs continuations, which a tree has no room for; draft chains")
        return {"constraint": self.constraint(grammar, limit, how), "fidelity": how}

    def constraint(self, grammar: Grammar, limit: int, how: str) -> Constraint:
        """The constraint of an output of at most so many tokens; UsageError where `how` cannot be done for it."""
        tokens: TokenAutomaton = self.trie(grammar) if fidelity(how)[0] == "exact" else self.tokens(grammar)
        return Constraint(tokens, self.vocabulary.ends, limit)

    def _tokenize(self, string: bytes) -> list[int]:
        """Tokens of a string; after a newline where the tokenizer puts a blank before the first word."""
        text, pieces = string.decode("utf-8"), self.vocabulary.pieces
        tokens = self.target.tokenize(text, add_special=False)
        if b"".join(pieces[token] for token in tokens) != string:
            line, both = (self.target.tokenize("\n" + more, add_special=False) for more in ("", text))
            tokens = both[len(line) :] if both[: len(line)] == line else tokens
        return list(tokens)
