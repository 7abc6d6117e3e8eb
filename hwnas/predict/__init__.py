"""What a network will cost: predictors, how good they are, and how sure."""

from hwnas.predict.base import Predictor, predictors
from hwnas.predict.data import Measurements, read_measurements
from hwnas.predict.fit import FitReport, Predictions, fit_predictor, open_model, predict, predict_file
from hwnas.predict.store import load_predictor

__all__ = [
    "FitReport",
    "Measurements",
    "Predictions",
    "Predictor",
    "fit_predictor",
    "load_predictor",
    "open_model",
    "predict",
    "predict_file",
    "predictors",
    "read_measurements",
]
