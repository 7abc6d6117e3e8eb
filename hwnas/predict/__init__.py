"""What a network will cost: predictors, how good they are, and how sure."""

from hwnas.predict.active import Progress, next_to_measure, progress_of
from hwnas.predict.audit import Audit, audit
from hwnas.predict.base import Predictor, predictors
from hwnas.predict.choosers import ForTransfer, Until, choosers
from hwnas.predict.data import Measurements, read_measurements
from hwnas.predict.fit import FitReport, fit_predictor
from hwnas.predict.inference import OnnxPrediction, Predictions, open_model, predict, predict_file, predict_onnx
from hwnas.predict.store import load_predictor
from hwnas.predict.transfer import pick_for_transfer

__all__ = [
    "Audit",
    "FitReport",
    "ForTransfer",
    "Measurements",
    "OnnxPrediction",
    "Predictions",
    "Predictor",
    "Progress",
    "Until",
    "audit",
    "choosers",
    "fit_predictor",
    "load_predictor",
    "next_to_measure",
    "open_model",
    "pick_for_transfer",
    "predict",
    "predict_file",
    "predict_onnx",
    "predictors",
    "progress_of",
    "read_measurements",
]
