"""Automata over tokens: against brute force, against outlines-core, and within a limit."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_languages import patterns

from refspec.errors import UsageError
from refspec.grammar.automaton import automaton
from refspec.grammar.constraint import ENDED, Constraint
from refspec.grammar.regex import regex
from refspec.grammar.tokens import DEAD, NEVER, ByteTokens, Vocabulary
from refspec.grammar.trie import TokenTrie, trie_of

some = settings(max_examples=60, deadline=None, derandomize=True)
END = 0
# whole characters, parts of é, ü and 😀, several of them in one token, two tokens of one spelling
PIECES = [b"</s>", b"", *(s.encode() for s in ("a", "b", "c", "ab", "aba", "1", "_", "é", "ab", "bé", ".", "\n"))]
PIECES += [b"\xc3", b"\xa9", b"a\xc3", b"\xbc", b"\xf0\x9f", b"\x98\x80", b"\xa9b", b"\xc3\xa9\xc3"]
VOCABULARY = Vocabulary(PIECES, {END})


def alive(language, vocabulary):
    """States from which tokens lead to an end, by brute force."""
    found = set(np.flatnonzero(language.final).tolist())
    while True:
        more = {
            q for q in range(language.dead) for piece in vocabulary.pieces if piece and language.run(piece, q) in found
        }
        if more <= found:
            return found
        found |= more


@some
@given(patterns)
def test_a_token_is_allowed_if_an_output_can_follow(pattern):
    language = automaton(regex(pattern))
    good = alive(language, VOCABULARY)
    if language.start not in good:
        with pytest.raises(UsageError, match="no tokens for any output"):
            ByteTokens(language, VOCABULARY)
        return
    tokens = ByteTokens(language, VOCABULARY)
    seen, left = {tokens.start}, [tokens.start]
    for q in left:
        row = tokens.row(q)
        wanted = {t: language.run(p, q) for t, p in enumerate(VOCABULARY.pieces) if p and language.run(p, q) in good}
        assert dict(zip(row.ids.tolist(), row.next.tolist(), strict=True)) == wanted
        assert list(row.ids) == sorted(wanted)
        for walked in (tokens.walk(q), tokens.walked(q)):  # NumPy, and C where it is built
            reached = {t: language.run(p, q) for t, p in enumerate(VOCABULARY.pieces) if p}
            alive_now = {t: after for t, after in reached.items() if after != language.dead}
            assert dict(zip(walked.ids.tolist(), walked.next.tolist(), strict=True)) == alive_now
        for t in range(len(PIECES)):
            assert tokens.step(q, t) == wanted.get(t, DEAD)
        steps = [int(tokens.shortest[after]) + 1 for after in wanted.values()]
        assert tokens.shortest[q] == (0 if language.final[q] else min(steps))
        left += [after for after in set(wanted.values()) - seen]
        seen |= set(wanted.values())


@some
@given(patterns)
def test_the_table_is_that_of_outlines_core(pattern):
    outlines = pytest.importorskip("outlines_core")
    # their \d and \w know all of Unicode, ours and those of re.ASCII do not
    pattern = re.sub(r"(?<=[*+?}])\?", "", pattern).replace(r"\d", "[0-9]").replace(r"\w", "[0-9A-Za-z_]")
    try:
        theirs = outlines_table(outlines, pattern)
        ours = ByteTokens(automaton(regex(pattern)), VOCABULARY)
    except (ValueError, UsageError):
        return  # nothing that this vocabulary can say
    table, finals = theirs.get_transitions(), theirs.get_final_states()
    same = {(theirs.get_initial_state(), ours.start)}
    left = list(same)
    for a, b in left:
        row = ours.row(b)
        after = dict(zip(row.ids.tolist(), row.next.tolist(), strict=True))
        # outlines-core keeps tokens after which its vocabulary can complete nothing
        going = {t: q for t, q in table.get(a, {}).items() if t != END and (t in after or completes(table, finals, q))}
        assert going.keys() <= after.keys()
        if "|" not in pattern:  # see the next test
            for token in after.keys() - going.keys():
                assert any(
                    ours.language.final[ours.language.run(PIECES[token][:i], b)] for i in range(len(PIECES[token]))
                )
        for token in going:
            pair = (going[token], after[token])
            if pair not in same:
                same.add(pair)
                left.append(pair)


def test_outlines_core_loses_outputs_which_is_why_it_is_not_used():
    outlines = pytest.importorskip("outlines_core")
    # alternatives after the first that matches, what is beyond the shortest match, and a part of a character, or any
    # other token that leads out of a final state into one that is not
    for pattern, output, lost in [("a|ab", b"ab", 5), ("a*?", b"a", 2), ("é*", "é".encode(), 14), ("(ab)*", b"ab", 2)]:
        language = automaton(regex(pattern))
        theirs, ours = outlines_table(outlines, pattern), ByteTokens(language, VOCABULARY)
        assert language.matches(output) and lost in ours.row(ours.start).ids
        assert lost not in theirs.get_transitions().get(theirs.get_initial_state(), {})


def outlines_table(outlines, pattern):
    spelled = {}
    for token, piece in enumerate(VOCABULARY.pieces):
        if piece:
            spelled.setdefault(piece, []).append(token)
    return outlines.Index(pattern, outlines.Vocabulary(END, spelled))


def completes(table, finals, state):
    seen, left = {state}, [state]
    for q in left:
        if q in finals:
            return True
        new = {after for t, after in table.get(q, {}).items() if t != END} - seen
        seen |= new
        left += new
    return False


def test_the_table_is_kept_by_vocabulary_and_grammar(tmp_path):
    language = automaton(regex("(a|b){3}é"))
    first = ByteTokens(language, VOCABULARY, tmp_path)
    (kept,) = tmp_path.iterdir()
    np.testing.assert_array_equal(ByteTokens(language, VOCABULARY, tmp_path).shortest, first.shortest)
    ByteTokens(automaton(regex("a*")), VOCABULARY, tmp_path)
    ByteTokens(language, Vocabulary([*PIECES, b"bb"], {END}), tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    kept.write_bytes(b"broken")
    np.testing.assert_array_equal(ByteTokens(language, VOCABULARY, tmp_path).shortest, first.shortest)


@some
@given(st.lists(st.lists(st.integers(1, 4), max_size=4), min_size=1, max_size=6))
def test_a_trie_allows_its_sequences_and_no_other(sequences):
    trie = TokenTrie(sequences)
    for sequence in sequences:
        q = trie.start
        for i, token in enumerate(sequence):
            wanted = {s[i] for s in sequences if s[:i] == sequence[:i] and len(s) > i}
            assert set(trie.row(q).ids.tolist()) == wanted
            q = trie.step(q, token)
        assert trie.shortest[q] == 0
    assert trie.step(trie.start, 9) == DEAD and trie.sequences == len(set(map(tuple, sequences)))


def test_there_is_no_trie_of_tokens_that_spell_something_else():
    assert trie_of([b"ab"], lambda s: [2], PIECES) is None
    assert trie_of([b"ab", b"a"], lambda s: [5] if len(s) == 2 else [2], PIECES).sequences == 2


@some
@given(patterns, st.integers(1, 7))
def test_every_allowed_token_leaves_room_for_an_end(pattern, limit):
    try:
        tokens = ByteTokens(automaton(regex(pattern)), VOCABULARY)
    except UsageError:
        return
    if tokens.shortest[tokens.start] + 1 > limit:
        with pytest.raises(UsageError, match="the shortest output that matches has"):
            Constraint(tokens, [END], limit)
        return
    constraint = Constraint(tokens, [END], limit)
    rng = np.random.default_rng(0)
    for _ in range(10):
        state, left, said = constraint.start, limit, b""
        while state != ENDED:
            row = constraint.allowed(state, left)
            assert len(row.ids) and list(row.ids) == sorted(row.ids)
            for token in range(len(PIECES)):
                inside = np.flatnonzero(row.ids == token)
                assert constraint.step(state, token, left) == (int(row.next[inside[0]]) if len(inside) else DEAD)
            i = int(rng.integers(len(row.ids)))
            said += b"" if row.ids[i] == END else PIECES[row.ids[i]]
            state, left = int(row.next[i]), left - 1
        assert left >= 0 and automaton(regex(pattern)).matches(said)


def test_forced_tokens_are_those_without_another():
    constraint = Constraint(TokenTrie([[5, 6, 7], [5, 6, 8, 9]]), [END], 9)
    assert constraint.forced(constraint.start, 9) == [5, 6]
    assert constraint.forced(constraint.automaton.step(constraint.automaton.step(0, 5), 6), 9) == []
    assert constraint.forced(constraint.start, 4) == [5, 6, 7, END]  # the longer one does not fit
    assert NEVER not in constraint.automaton.shortest


def test_a_model_without_an_end_token_is_refused():
    with pytest.raises(UsageError, match="no end token"):
        Constraint(TokenTrie([[1]]), [], 9)
