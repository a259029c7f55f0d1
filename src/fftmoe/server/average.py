"""A moving average of the global model over the rounds: what is served, while training goes on from the last round.

Under label skew the global model swings with every cohort's labels; the swings of several rounds cancel. It costs no
byte on the wire (docs/math.md, Average over rounds).
"""

from dataclasses import replace

from fftmoe.records import ServerState


def averaged(state: ServerState, decay: float) -> ServerState:
    """The state with its average moved to include this round; `decay` 0 keeps none.

    a_t = a_{t-1} + (theta_t - a_{t-1}) (1 - decay) / (1 - decay^t), which weighs the rounds 1 … t by decay^(t - round).
    """
    if not decay:
        return state
    step = (1 - decay) / (1 - decay**state.round)
    average = {
        name: (old := state.average.get(name, new)).double().lerp(new.double(), step).to(old.dtype)
        for name, new in state.tensors.items()
    }
    return replace(state, average=average)


def served(state: ServerState) -> ServerState:
    """The state with its average in the place of the global model, where one is kept."""
    return replace(state, tensors=state.average, average={}) if state.average else state
