"""The composition root: recipes become parts here, and here alone."""

from fftmoe.experiment.cells import Variant
from fftmoe.experiment.compare import compare
from fftmoe.experiment.plan import Forecast, TierCost, forecast
from fftmoe.experiment.plugins import Plugins
from fftmoe.experiment.predict import predict_run
from fftmoe.experiment.run import Result, resume, run
from fftmoe.experiment.use import evaluate_run, load_run

__all__ = [
    "Forecast",
    "Plugins",
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
