"""Models by name: what a name means (`names`), what the hub has (`hub`), what is on this machine (`listing`).

Below the session, because `refspec.load` takes names, and above `convert/`, because a drafter on the hub may be a
checkpoint. Whatever takes a model or a drafter resolves it here and works on files from then on.
"""

from refspec.named.names import Pair, drafter, local, model, pair

__all__ = ["Pair", "drafter", "local", "model", "pair"]
