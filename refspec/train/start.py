"""Starting a training from existing weights: an export of a model, or an earlier run."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from refspec.errors import CheckpointError
from refspec.train.drafter import Eagle3
from refspec.train.loop import CHECKPOINT, read_checkpoint
from refspec.train.model import Target

WEIGHTS = "model.safetensors"
LAYERS = "model.layers."


def start_target(model: Target, init: Path) -> None:
    """Take the weights of a Hugging Face directory, which may have fewer feed-forward channels or layers.

    Raises CheckpointError.
    """
    file = init / WEIGHTS
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file; name a Hugging Face directory with --init")
    try:
        drawn = model.hf_state()
        model.load_hf_state(deepened(widened(read_weights(file), drawn), model.config.n_layers))
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"{file}: does not fit the sizes asked for ({_short(error)})") from None


def widened(state: dict[str, Tensor], drawn: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state` (Hugging Face names, or a drafter's) with at least as many feed-forward channels as `drawn`.

    It computes the same: new channels read as drawn and write nothing (columns of zeros in `down_proj`) at first.
    """
    out = dict(state)
    for name, w in state.items():
        new = drawn.get(name)
        if new is None:
            continue
        if name.endswith(("gate_proj.weight", "up_proj.weight")) and len(w) < len(new):
            out[name] = torch.cat([w.float(), new[len(w) :]])
        elif name.endswith("gate_up.weight") and len(w) < len(new):  # a drafter's two in one
            halves = zip(w.float().chunk(2), new.chunk(2), strict=True)
            out[name] = torch.cat([torch.cat([old, ours[len(old) :]]) for old, ours in halves])
        elif name.endswith(("down_proj.weight", "down.weight")) and w.shape[1] < new.shape[1]:
            out[name] = torch.cat([w.float(), torch.zeros_like(new[:, w.shape[1] :])], 1)
    return out


def deepened(state: dict[str, Tensor], n_layers: int) -> dict[str, Tensor]:
    """`state` (Hugging Face names) with `n_layers` layers, where it has fewer.

    It computes the same: new layers, evenly between the others, are copies of the previous one that write nothing
    (zeros in `o_proj` and `down_proj`) at first. Raises KeyError for fewer layers.
    """
    have = 1 + max((int(name.split(".")[2]) for name in state if name.startswith(LAYERS)), default=-1)
    if have > n_layers:
        raise KeyError(f"{have} layers, {n_layers} asked for")
    if have in (0, n_layers):
        return state
    out = {name: w for name, w in state.items() if not name.startswith(LAYERS)}
    places = [i * n_layers // have for i in range(have)]
    for at in range(n_layers):
        source = sum(place <= at for place in places) - 1
        for name, w in state.items():
            if name.startswith(f"{LAYERS}{source}."):
                rest = name.removeprefix(f"{LAYERS}{source}.")
                fresh = at not in places and rest in ("self_attn.o_proj.weight", "mlp.down_proj.weight")
                out[f"{LAYERS}{at}.{rest}"] = torch.zeros_like(w) if fresh else w
    return out


def start_drafters(drafters: dict[str, Eagle3], init: Path) -> None:
    """Take the weights of drafters of the same names, but for the target's embedding and the draft vocabulary.

    `init` is the run folder they were trained in, its checkpoint, or a folder that holds each exported as NAME/ in the
    speculators layout.
    Rows of the head follow their tokens; a token the earlier drafter could not draft keeps its drawn row. The earlier
    drafters may have fewer feed-forward channels. Raises CheckpointError.
    """
    earlier, file = _earlier(drafters, init)
    for name, drafter in drafters.items():
        state = earlier[name]
        trained = {key for key, parameter in drafter.named_parameters() if parameter.requires_grad}
        if missing := sorted(trained - state.keys()):
            raise CheckpointError(f"{file}: has no {name}.{missing[0]}; --init wants the same variants")
        try:
            weights = widened(
                {key: state[key] for key in trained}, {key: p.detach() for key, p in drafter.named_parameters()}
            )
            row_of = {token: row for row, token in enumerate(state["draft_ids"].cpu().tolist())}
            ours = drafter.draft_ids.tolist()
            known = [i for i, token in enumerate(ours) if token in row_of]
            fresh = drafter.head.weight.detach().clone()
            fresh[known] = weights["head.weight"][[row_of[ours[i]] for i in known]].to(fresh)
            drafter.load_state_dict(weights | {"head.weight": fresh}, strict=False)
        except (RuntimeError, IndexError) as error:
            raise CheckpointError(f"{file}: does not fit the sizes asked for ({_short(error)})") from None


def _earlier(drafters: dict[str, Eagle3], init: Path) -> tuple[dict[str, dict[str, Tensor]], Path]:
    """{name: parameters and draft_ids of the drafter of that name}, and the file to blame."""
    file = init if init.is_file() else init / CHECKPOINT
    if not file.is_file():
        exports = {name: init / name / WEIGHTS for name in drafters}
        if absent := [export for export in exports.values() if not export.is_file()]:
            raise CheckpointError(
                f"{file}: no such file, and no {absent[0].relative_to(init)} there; name with --init the run folder of"
                " trained drafters, or one that holds each as an export in the speculators layout"
            )
        try:
            return {
                name: drafters[name].load_checkpoint_state(read_weights(export)) for name, export in exports.items()
            }, init
        except KeyError as error:
            raise CheckpointError(
                f"{init}: an export has no {error}; --init wants the same variants, in the speculators layout"
            ) from None
    state = read_checkpoint(file)
    if not state["identity"]["kind"].startswith("drafters"):
        raise CheckpointError(f"{file}: a {state['identity']['kind']} run; --init wants drafters")
    return {
        name: {k.removeprefix(f"{name}."): w for k, w in state["model"].items() if k.startswith(f"{name}.")}
        for name in drafters
    }, file


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; CheckpointError for a damaged one."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found: dict[str, Tensor] = load_file(str(file))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: not a safetensors file ({_short(error)}); export it again") from None
    return found


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
