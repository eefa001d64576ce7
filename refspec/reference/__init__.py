"""The textbook: what drafters compute and why speculation is lossless, in NumPy, readable without any other folder.

Imports NumPy and `refspec.errors` only. No file, no clock, no llama.cpp, no hidden randomness: a coin is an argument.
Read in this order:

1. `ops.py`               the few operations a drafter is made of, one row at a time where it matters
2. `config.py`            what an EAGLE-3 drafter is: sizes, the three normalization switches, the table of its tensors
3. `eagle3_forward.py`    the forward pass, in execution order: the heart
4. `cache.py`             the KV cache it runs over
5. `draft.py`             what a drafter returns, and what it tells a probe about each row
6. `eagle3.py`            the forward pass chained into draft tokens
7. `sampling.py`          logits to the target's distribution, and one coin to one token
8. `penalties.py`         what the output so far does to the next token's logits
9. `verify.py`            the lossless rules: which draft tokens are accepted, which token follows
10. `draft_distribution.py`  the distribution a sampled draft is drawn from
11. `tree.py`, `tree_grow.py`, `tree_verify.py`, `eagle3_tree.py`   the same for draft trees
12. `packed_matmul.py`    packed matrix multiplication whose results do not depend on the batch
13. `metrics.py`          what a run did: counts and times recorded, rates derived
"""
