"""Computes a moving average of the global model over the rounds. It is evaluated and saved; training continues without
it.

Under label skew the global model swings towards the labels of every cohort. The swings of several rounds cancel in the
average. The average adds no traffic, because only the server computes it (docs/math.md, Average over rounds).
"""

from dataclasses import replace

from fftmoe.records import ServerState


def averaged(state: ServerState, decay: float) -> ServerState:
    """Add this round's model to the average of the state; with `decay` 0 the state keeps no average.

    a_t = a_{t-1} + (theta_t - a_{t-1}) (1 - decay) / (1 - decay^t). It weights each round s of 1 … t by decay^(t - s).
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
    """Return the state whose global model is the average; a state without an average is returned unchanged."""
    return replace(state, tensors=state.average, average={}) if state.average else state
