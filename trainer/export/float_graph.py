"""The float32 ONNX graph: an artifact, and what formats of lower precision are made of."""

import shutil
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from weakref import finalize

import onnx
from onnx import ModelProto, TensorProto
from onnx.external_data_helper import ExternalDataInfo

from trainer.export.folder import UNFINISHED, files_of, link
from trainer.export.onnx import write_onnx
from trainer.export.subject import Subject


def write_float(path: Path, subject: Subject) -> dict[str, Any]:
    """Writes the subject's graph, which is exported once whoever asks for it.

    Args:
        path: The new file, `model.onnx`: the graph names the file of large weights that lies beside it.
        subject: The model.

    Returns:
        What `write_onnx` returns.
    """
    graph, details = subject.once(_exported)
    assert path.name == graph.name, "the graph names the file beside it"
    for each in files_of(graph.parent, graph.name):
        link(each, path.with_name(each.name))
    return details


def float_graph(subject: Subject) -> Path:
    """The subject's graph, in a folder that is gone with the subject."""
    return subject.once(_exported)[0]


def load_graph(path: Path) -> ModelProto:
    """A graph with its weights, also those that lie beside it.

    onnx reads no such file that has a second name, and `write_float` gives it one.
    """
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            place = ExternalDataInfo(tensor)
            with (path.parent / place.location).open("rb") as file:
                file.seek(place.offset or 0)
                tensor.raw_data = file.read(place.length or -1)
            del tensor.external_data[:]
            tensor.data_location = TensorProto.DEFAULT
    return model


def is_split(path: Path) -> bool:
    """Whether weights of a graph lie in a file beside it."""
    graph = onnx.load(path, load_external_data=False).graph
    return any(each.data_location == TensorProto.EXTERNAL for each in graph.initializer)


def _exported(subject: Subject) -> tuple[Path, dict[str, Any]]:
    folder = Path(mkdtemp(dir=subject.scratch, prefix=UNFINISHED))
    finalize(subject, shutil.rmtree, folder, ignore_errors=True)
    return folder / "model.onnx", write_onnx(folder / "model.onnx", subject)
