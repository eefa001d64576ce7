"""Several steps of the decode cycle in one call of C (`native/burst.c`): what is asked for.

The cycle (`speculate.py`) asks, a target's judge (`decoding/target.py`) runs them, a window (`adaptive/policy.py`) says
how far ahead it need not be asked, a drafter (`decoding/drafter.py`) is lent. None of the last three knows the others;
this is what they share.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

AT_ONCE = 0.04  # seconds after which no step is begun in the same call: a film shows no more pictures a second


class Purse(NamedTuple):
    """What steps may lose, in plain tokens: native/account.c's `rs_account`."""

    plain: float  # seconds of a step of plain decoding
    reserve: float = math.inf
    allowance: float = math.inf
    careful: float = -math.inf  # where less than this may be lost, a step drafts no more than is staked
    staked: float = 0.0  # `adaptive/probe.py`
    stood: float = 0.0
    shown: float = 0.0


class Ahead(NamedTuple):
    """Steps of the decode cycle that may be run without asking before each of them."""

    steps: int  # at most
    draft: int = 0  # tokens drafted in each at most
    before: int = 0  # rows of the step before, 0 where it does not matter
    # an `rs_window` that ends drafts and learns of them (`native/window.py`); None where nothing does
    window: Any = None
    account: Purse | None = None  # with a window: what the steps may lose before they end


class Lent(NamedTuple):
    """A drafter that C may use for a call."""

    chain: Any  # its `rs_eagle3_chain`
    rows: int  # true rows it holds
