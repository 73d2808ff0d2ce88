"""Eight-bit integers on onnxruntime, scored on the file that is deployed."""

from compress.quantize.quantize import Quantize

__all__ = ["Quantize"]
