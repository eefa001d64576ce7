"""The textbook: what a drafter computes and why speculative decoding is lossless, in NumPy.

Readable without any other folder: it imports NumPy, `refspec.errors` and itself. No files, no clock, no llama.cpp and
no hidden randomness. `refspec/native` is the same in C, under the same names.

The idea. A large model, the target, writes one token per run. A small model, the drafter, guesses the next k tokens;
one run of the target then judges all k guesses at once, accepts a prefix of them and adds one token of its own. The
output has exactly the distribution of the target alone, so only speed depends on the guesses.

Words used throughout:

    draft tokens       the tokens the drafter guesses, k in a chain; a tree holds several continuations
    verify step        one run of the target that judges draft tokens; tau is the number of tokens it yields on average
    pending token      the newest token of the output, decided but not yet run by the target
    bonus token        the target's own token after the last accepted draft token
    p_target, q_draft  distributions of the next token: the target's, and the drafter's where it samples
    coin               a uniform number in [0, 1), always an argument
    features           hidden states of the target at a few layers (`capture_layers`), one vector per position
    row                one position of a batch or cache. The drafter's row P takes the token x_{P+1} and the feature of
                       position P, has RoPE position P, and predicts x_{P+2}; x_0 is never given to a drafter
    true row           a drafter row made from a feature of the target
    chained row        a drafter row made from the output of the row before it: the target has not been there yet
    state              the vector of width H that a drafter row starts from: g = fc(feature), or what the previous
                       row hands on
    d2t                the target's id of each draft id, where the drafter has a smaller vocabulary than the target

Read in this order:

1.  `ops.py`                 the few operations a drafter is made of
2.  `config.py`              what an EAGLE-3 drafter is: sizes, normalization switches, the table of its tensors
3.  `cache.py`               the KV cache
4.  `eagle3_forward.py`      the forward pass, in execution order: the heart
5.  `sampling.py`            from logits to the target's distribution, and from one coin to one token
6.  `verify.py`              the lossless rules: which draft tokens are accepted, which token follows
7.  `draft_distribution.py`  the distribution that a sampled draft token is drawn from
8.  `draft.py`               what a drafter returns
9.  `eagle3_rows.py`         the forward pass over a cache: true rows, chained rows, rollback
10. `eagle3.py`              rows chained into draft tokens
11. `tree.py`, `tree_verify.py`, `tree_grow.py`, `eagle3_tree.py`   the same for trees of draft tokens
12. `penalties.py`           how repetition changes the next token's logits
13. `metrics.py`             what a run did: counts and times recorded, rates derived
14. `packed_matmul.py`       multiplication by quantized weights whose results do not depend on the batch
"""
