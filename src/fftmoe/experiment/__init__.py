"""The composition root: recipes become parts here, and here alone."""

from fftmoe.experiment.cells import Variant
from fftmoe.experiment.compare import compare
from fftmoe.experiment.plan import Forecast, TierCost, forecast
from fftmoe.experiment.run import Result, resume, run
from fftmoe.experiment.use import evaluate_run, load_run, predict_run

__all__ = [
    "Forecast",
    "Result",
    "TierCost",
    "Variant",
    "compare",
    "evaluate_run",
    "forecast",
    "load_run",
    "predict_run",
    "resume",
    "run",
]
