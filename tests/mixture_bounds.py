"""How far two computations of a mixture of experts can differ if only their rounding differs."""

import torch
from torch import Tensor

from fftmoe.adapter.compute import ACTIVATIONS, COMPUTES


def mixture_bounds(x_TD: Tensor, gates_TK: Tensor, ids_TK: Tensor, up_MHD: Tensor, down_MHD: Tensor) -> list[Tensor]:
    """Bounds for each number of the output and of the gradients of x, the gates, up and down; float64.

    Each of the two sums differs from the exact one by at most n * eps / 2 times the sum of its terms' sizes (Higham,
    Accuracy and Stability of Numerical Algorithms, section 3.1), so they are n * eps of that apart. The sizes are what
    the same computation gives for absolute values and weights of 1; an activation is no larger than its input.
    """
    x, gates, up, down = (t.detach().abs().double().requires_grad_() for t in (x_TD, gates_TK, up_MHD, down_MHD))
    y_TD = COMPUTES["loop"](x, gates, ids_TK, up, down, ACTIVATIONS["relu"])
    sizes = [y_TD.detach(), *torch.autograd.grad(y_TD.sum(), [x, gates, up, down])]
    # Sums over tokens, features, hidden features and chosen experts; an activation takes a dozen steps.
    terms = sum(x_TD.shape) + up_MHD.shape[-2] + gates_TK.shape[-1] + 12
    return [terms * torch.finfo(x_TD.dtype).eps * size for size in sizes]
