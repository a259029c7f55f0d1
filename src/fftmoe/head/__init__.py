"""Defines classification heads: the losses of their kinds, and the closed-form head from feature statistics.

Only the mathematics is here, without models, clients or recipes; every package above may import it.
"""

from fftmoe.head.answers import LEAST_SHARE as LEAST_SHARE
from fftmoe.head.answers import ONE_LABEL as ONE_LABEL
from fftmoe.head.answers import AgainstOthers as AgainstOthers
from fftmoe.head.answers import Answers as Answers
from fftmoe.head.answers import EachExample as EachExample
from fftmoe.head.answers import LabelAnswers as LabelAnswers
from fftmoe.head.answers import OneLabel as OneLabel
from fftmoe.head.bounded import bounded_total as bounded_total
from fftmoe.head.closed_form import HeadSums as HeadSums
from fftmoe.head.closed_form import are_few as are_few
from fftmoe.head.closed_form import few_tensors as few_tensors
from fftmoe.head.closed_form import solve_ridge as solve_ridge
from fftmoe.head.closed_form import solved_head as solved_head
from fftmoe.head.closed_form import solved_with_leverage as solved_with_leverage
from fftmoe.head.closed_form import sum_shapes as sum_shapes
from fftmoe.head.losses import HEADS as HEADS
from fftmoe.head.losses import Averaged as Averaged
from fftmoe.head.losses import HeadLoss as HeadLoss
from fftmoe.head.losses import LeastSquares as LeastSquares
from fftmoe.head.losses import OneVsAll as OneVsAll
from fftmoe.head.losses import SquaredDistance as SquaredDistance
from fftmoe.head.losses import make_head as make_head
from fftmoe.head.prior import PRIOR_STRENGTHS as PRIOR_STRENGTHS
from fftmoe.head.prior import LabelTotals as LabelTotals
from fftmoe.head.prior import are_shares as are_shares
from fftmoe.head.prior import best_strength as best_strength
from fftmoe.head.prior import estimated_shares as estimated_shares
from fftmoe.head.prior import prior_shift as prior_shift
from fftmoe.head.prior import smoothed_shares as smoothed_shares
from fftmoe.head.prior import strength_losses as strength_losses
from fftmoe.head.private import RIDGES as RIDGES
from fftmoe.head.private import PrivateFit as PrivateFit
from fftmoe.head.temperature import best_temperature as best_temperature
from fftmoe.head.temperature import score_sums as score_sums
from fftmoe.head.temperature import usable as usable
