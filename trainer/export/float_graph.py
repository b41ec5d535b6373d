"""The float32 ONNX graph that formats of lower precision are made of."""

import shutil
from pathlib import Path
from tempfile import mkdtemp
from weakref import finalize

import onnx
from onnx import TensorProto

from trainer.export.onnx import write_onnx
from trainer.export.subject import Subject


def float_graph(subject: Subject) -> Path:
    """The subject's graph as `write_onnx` writes it, in a folder that is gone with the subject (`Subject.once`)."""
    folder = Path(mkdtemp(prefix="trainer-"))
    finalize(subject, shutil.rmtree, folder, ignore_errors=True)
    write_onnx(folder / "model.onnx", subject)
    return folder / "model.onnx"


def is_split(path: Path) -> bool:
    """Whether weights of a graph lie in a file beside it."""
    graph = onnx.load(path, load_external_data=False).graph
    return any(each.data_location == TensorProto.EXTERNAL for each in graph.initializer)
