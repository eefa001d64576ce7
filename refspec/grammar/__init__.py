"""Grammars over a model's tokens, and the distribution a user means by one: the model given that its output is valid.

Read in this order:

1.  `nodes.py`                                 what a grammar is
2.  `regex.py`, `json_schema.py`, `gbnf.py`    what it can be written in; `numbers.py` is digits between bounds
3.  `automaton.py`                             from a grammar to a deterministic automaton over bytes
4.  `tokens.py`, `trie.py`                     and from there to automata over a model's tokens
5.  `constraint.py`                            which tokens may follow, an end and a limit included
6.  `future.py`                                Phi, the probability that a valid output follows: exact, and estimated
"""
