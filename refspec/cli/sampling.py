"""The options that say how a token is chosen, of the commands that generate: penalties are `penalties.py`'s."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from refspec.cli.command import SAMPLING, note, option, options
from refspec.cli.group import read_bias
from refspec.cli.penalties import changed, penalties_of, penalty_options

if TYPE_CHECKING:
    from refspec.reference.sampling import Sampler
    from refspec.session import Session

sampling_options = options(
    option(
        "--temp", type=float, default=0.0, show_default=True, section=SAMPLING, also=("--temperature",),
        help="Temperature; 0 always takes the likeliest token.",
    ),
    option("--top-k", type=int, default=0, section=SAMPLING, help="Keep the k likeliest tokens; 0 is off."),
    option(
        "--top-p", type=float, default=1.0, section=SAMPLING,
        help="Keep the likeliest tokens up to this mass; 1 is off.",
    ),
    option(
        "--min-p", type=float, default=0.0, section=SAMPLING,
        help="Drop tokens below this share of the likeliest; 0 is off.",
    ),
    option(
        "--seed", type=int, default=0, show_default=True, section=SAMPLING, also=("-s",),
        help="Same seed, same output, with and without speculation.",
    ),
    option(
        "--recommended", is_flag=True, section=SAMPLING,
        help="Sample as the target's file recommends, where no option says otherwise.",
    ),
    option(
        "--logit-bias", metavar="ID=X", multiple=True, section=SAMPLING,
        help="Add X to the logit of token ID, -inf forbids it; may be repeated.",
    ),
    penalty_options,
)  # fmt: skip


def asked(o: dict[str, Any]) -> Sampler:
    """The sampler of the options but for penalties, whose values are checked: before a model is loaded."""
    from refspec.reference.sampling import Sampler

    penalties_of(o)
    bias = read_bias(o["logit_bias"])
    return Sampler(temperature=o["temp"], top_k=o["top_k"], top_p=o["top_p"], min_p=o["min_p"], logit_bias=bias)


# Option -> the field of Sampler or Penalties it sets.
SETS = {
    "temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "repeat_penalty": "repeat",
    "repeat_last_n": "repeat_last_n",
}  # fmt: skip


def settled(ctx: click.Context, session: Session, sampler: Sampler, o: dict[str, Any]) -> Sampler:
    """`sampler` under penalties, with what the target's file recommends if that was asked for, else a note of it."""
    from refspec.gguf.recommended_sampling import recommended

    sampler = replace(sampler, penalties=changed(session.sampler.penalties, o))
    found = recommended(session.target.metadata, session.name)
    given = {field for option, field in SETS.items() if ctx.get_parameter_source(option) is ParameterSource.COMMANDLINE}
    if o["recommended"]:
        note(f"{session.name} recommends {found}" if found else f"--recommended: {session.name} recommends no sampling")
        if found.unknown:
            note(f"--recommended: {', '.join(found.unknown)} of {session.name} is not known here and left out")
        sampler = found.applied(sampler, given)
    elif found and not given:
        note(f"{session.name} recommends {found}; --recommended takes that, this is greedy")
    if sampler.penalties == session.sampler.penalties and sampler.penalties.on:
        note("anti-repetition (DRY) is on for this small model; --dry-multiplier 0 turns it off")
    return sampler
