"""Stages that make a trained model smaller, and the measures that say by how much."""

from compress.artefact import load_artefact, save_artefact
from compress.cluster import Cluster
from compress.coded_model import CodedModel
from compress.cost import Cost, measure
from compress.encode import Encode
from compress.export import Export
from compress.file_model import FileModel
from compress.latency import latency
from compress.lowrank import LowRank
from compress.mobile import Mobile, MobileModel
from compress.onnx_model import OnnxModel
from compress.prune import Prune
from compress.quantize import Quantize
from compress.recover import Recover
from compress.repeat import Repeat
from compress.sparsify import Sparsify
from compress.stage import Artefact, Context, Report, Stage
from compress.torch_export import TorchExport
from compress.torch_model import TorchModel

__all__ = [
    "Artefact",
    "Cluster",
    "CodedModel",
    "Context",
    "Cost",
    "Encode",
    "Export",
    "FileModel",
    "LowRank",
    "Mobile",
    "MobileModel",
    "OnnxModel",
    "Prune",
    "Quantize",
    "Recover",
    "Repeat",
    "Report",
    "Sparsify",
    "Stage",
    "TorchExport",
    "TorchModel",
    "latency",
    "load_artefact",
    "measure",
    "save_artefact",
]
