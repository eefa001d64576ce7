"""The options that punish what an output repeats, named as llama.cpp's.

`refspec/reference/penalties.py` says what they do.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from refspec.cli.command import PENALTIES, option, options
from refspec.reference.penalties import Penalties

_option = partial(option, section=PENALTIES)

# None is the default of `Penalties`, or what suits the embedded pair.
penalty_options = options(
    _option("--repeat-penalty", type=float, metavar="X", help="Divide logits of tokens the output has by X (1: off)."),
    _option("--presence-penalty", type=float, metavar="X", help="Take X from logits of tokens the output has (0)."),
    _option("--frequency-penalty", type=float, metavar="X", help="Take X for each time the output has a token (0)."),
    _option("--repeat-last-n", type=int, metavar="N", help="Newest tokens that these three look at; -1 is all (64)."),
    _option(
        "--dry-multiplier", type=float, metavar="X",
        help="DRY: take X * BASE^(L - ALLOWED) from what would continue a repeated stretch of L tokens (0: off; "
        "`generate` turns it on for the embedded pair).",
    ),
    _option("--dry-base", type=float, metavar="X", help="BASE (1.75)."),
    _option("--dry-allowed-length", type=int, metavar="N", help="ALLOWED: shorter stretches may come again (2)."),
    _option(
        "--dry-penalty-last-n", "dry_last_n", type=int, metavar="N",
        help="Newest tokens that DRY looks at; -1 is all (-1).",
    ),
    _option(
        "--dry-sequence-breaker", "dry_breakers", metavar="TEXT", multiple=True,
        help="No stretch goes on beyond a token with this text; may be repeated; none for none (newline, colon, quote, "
        "asterisk).",
    ),
    _option(
        "--penalize-prompt/--no-penalize-prompt", "prompt_counts", default=None,
        help="The prompt's tokens count, too, as in llama.cpp.",
    ),
)  # fmt: skip


def penalties_of(o: dict[str, Any]) -> dict[str, Any]:
    """The fields of `Penalties` that the penalty options set; UsageError for values it refuses."""
    names = (
        "repeat_penalty", "presence_penalty", "frequency_penalty", "repeat_last_n", "dry_multiplier", "dry_base",
        "dry_allowed_length", "dry_last_n",
    )  # fmt: skip
    asked = {name.removesuffix("_penalty"): o[name] for name in names if o[name] is not None}
    if texts := o["dry_breakers"]:
        spelled = tuple(text.replace("\\n", "\n").replace("\\t", "\t") for text in texts)
        asked["dry_breakers"] = () if texts == ("none",) else spelled
    if o["prompt_counts"] is not None:
        asked["prompt"] = o["prompt_counts"]
    Penalties(**asked)
    return asked


def changed(penalties: Penalties, o: dict[str, Any]) -> Penalties:
    """`penalties` but for what the options set."""
    return replace(penalties, **penalties_of(o))
