"""Classification heads: how logits become a loss, and the head that sums solve exactly."""

from fftmoe.head.bounded import bounded_total as bounded_total
from fftmoe.head.closed_form import HeadSums as HeadSums
from fftmoe.head.closed_form import are_few as are_few
from fftmoe.head.closed_form import few_tensors as few_tensors
from fftmoe.head.closed_form import solve_ridge as solve_ridge
from fftmoe.head.closed_form import solved_head as solved_head
from fftmoe.head.closed_form import sum_shapes as sum_shapes
from fftmoe.head.losses import HEADS as HEADS
from fftmoe.head.losses import Averaged as Averaged
from fftmoe.head.losses import Head as Head
from fftmoe.head.losses import LeastSquares as LeastSquares
from fftmoe.head.losses import OneVsAll as OneVsAll
from fftmoe.head.losses import make_head as make_head
