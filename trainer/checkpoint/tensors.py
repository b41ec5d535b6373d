"""Named tensors as the bytes of a safetensors file (https://huggingface.co/docs/safetensors, section Format), complete
or only some rows of each, and the bitwise comparison of two sets of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from trainer.checkpoint.manifest import DamagedError
from trainer.checkpoint.shards import Rows
from trainer.documents import ROWS, TENSOR
from trainer.errors import CheckpointError, format_error
from trainer.layout import Document
from trainer.shapes import DocumentError, check_shape, parse_json

NamedTensors = Mapping[str, Tensor]

_DTYPES: Final = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


_INTEGERS: Final = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_TORCH_DTYPES: Final = {name: dtype for dtype, name in _DTYPES.items()}
_ROWS: Final = "rows"
"""Metadata of a file whose tensors are not complete: tensor name -> [first row, shape of the complete tensor]."""


def encode(tensors: NamedTensors, rows: Mapping[str, Rows] | None = None) -> Iterator[bytes | memoryview]:
    """Yield the bytes of the file in order: the header, then each tensor's own memory.

    The library's `save` first builds the whole file in memory, which takes several times as long as writing it.
    Tensors that share memory (tied weights) are written once under each name.

    Args:
        tensors: The tensors by name.
        rows: The place of tensors that are not complete.

    Raises:
        CheckpointError: The format has no such dtype or layout.
    """
    # Wide elements first: every tensor then starts at a multiple of its element size, as readers that map it need.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header: Document = {"__metadata__": {"format": "pt", **({} if rows is None else {_ROWS: json.dumps(rows)})}}
    end = 0
    for name, tensor in ordered:
        if tensor.layout is not torch.strided or tensor.dtype not in _DTYPES or name == "__metadata__":
            raise CheckpointError(format_error(name, f"a {tensor.layout} tensor of {tensor.dtype} cannot be stored"))
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for _, tensor in ordered:
        if tensor.numel():
            yield tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data


def decode(data: bytes, file: str = "the file") -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, on the CPU, in memory of their own.

    Raises:
        DamagedError: It is no such file; `file` is its name.
    """
    try:
        return load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise DamagedError(f"{file} is not what was written: {error}") from error


def decode_shards(files: Mapping[str, bytes]) -> dict[str, Tensor]:
    """Return the complete tensors whose rows are in several safetensors files, by name.

    Raises:
        DamagedError: Rows are missing, or a file is no such file.
    """
    pieces: dict[str, list[tuple[Rows, Tensor]]] = {}
    for file, data in files.items():
        tensors = decode(data, file)
        _, rows = _parse_header(file, data[8 : 8 + int.from_bytes(data[:8], "little")])
        for name, tensor in tensors.items():
            pieces.setdefault(name, []).append((rows.get(name, Rows(0, tuple(tensor.shape))), tensor))
    return {name: _join(name, parts) for name, parts in pieces.items()}


def _parse_header(file: str, text: bytes) -> tuple[Document, dict[str, Rows]]:
    """Return the entries of a file's tensors, and the place of those that are not complete.

    Raises:
        DamagedError: The text is no header.
    """
    try:
        header = parse_json(text, {"__metadata__?": {str: str}})
        rows = parse_json(header.pop("__metadata__", {}).get(_ROWS, "{}"), ROWS)
        check_shape(header, {str: TENSOR})
        _check_places(entry["data_offsets"] for entry in header.values())
        for name, entry in header.items():
            start, end = entry["data_offsets"]
            dtype = _TORCH_DTYPES.get(entry["dtype"])
            if (
                dtype is None
                or min([start, *entry["shape"]]) < 0
                or prod(entry["shape"]) * dtype.itemsize != end - start
            ):
                raise DocumentError(f"{name}: dtype, shape and place do not fit together")
            first, whole = rows.get(name, (0, entry["shape"]))
            if first < 0 or len(whole) != len(entry["shape"]) or whole[1:] != entry["shape"][1:]:
                raise DocumentError(f"{name}: its rows do not fit into the complete tensor")
    except DocumentError as error:
        raise DamagedError(f"{file} is not what was written: {error}") from error
    return header, {name: Rows(start, tuple(shape)) for name, (start, shape) in rows.items()}


def _check_places(places: Iterable[Sequence[int]]) -> None:
    """Check that tensors follow each other: tensors that share bytes would need more memory than the file has."""
    end = 0
    for start, stop in sorted(tuple(place) for place in places):
        if start != end:
            raise DocumentError("the places of its tensors do not follow each other")
        end = stop


def _join(name: str, parts: list[tuple[Rows, Tensor]]) -> Tensor:
    shape = parts[0][0].shape
    if len(parts) == 1 and parts[0][1].shape == shape:
        return parts[0][1]
    if not shape:
        raise DamagedError(f"{name} is stored several times")
    ordered = sorted((part for part in parts if len(part[1])), key=lambda part: part[0].start)
    end = 0
    for rows, tensor in ordered:
        if rows.start != end or rows.shape != shape:
            break
        end += len(tensor)
    if end != shape[0]:
        raise DamagedError(f"the rows of {name} from {end} on are missing")
    # Without rows at all, every file has an empty tensor of the right shape.
    return torch.cat([tensor for _, tensor in ordered]) if ordered else parts[0][1]


@dataclass(frozen=True)
class _Piece:
    """The place of some rows of a tensor in a file."""

    path: Path
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    rows: Rows


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of safetensors files, each read only when it is used: not the whole set is in memory.

    Args:
        paths: The files; those that contain only some rows of a tensor are joined.
        others: More such files, used for the names that `paths` lack.

    Raises (every method):
        CheckpointError: A file cannot be read.
    """

    def __init__(self, paths: Iterable[Path], others: Iterable[Path] = ()) -> None:
        self._pieces: dict[str, list[_Piece]] = {}
        for path in paths:
            for name, piece in _read_header(path):
                self._pieces.setdefault(name, []).append(piece)
        own = frozenset(self._pieces)
        for path in others:
            for name, piece in _read_header(path):
                if name not in own:
                    self._pieces.setdefault(name, []).append(piece)

    def __getitem__(self, name: str) -> Tensor:
        return _join(name, [(piece.rows, _read(piece, 0, piece.shape)) for piece in self._pieces[name]])

    def __iter__(self) -> Iterator[str]:
        return iter(self._pieces)

    def __len__(self) -> int:
        return len(self._pieces)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a complete tensor."""
        return self._pieces[name][0].rows.shape

    def count_values(self) -> int:
        """Return the number of elements in the files."""
        return sum(prod(piece.shape) for pieces in self._pieces.values() for piece in pieces)

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Return the rows of a tensor from `start` up to `stop` (exclusive); no others are read."""
        parts = []
        for piece in self._pieces[name]:
            first = max(start, piece.rows.start)
            count = min(stop, piece.rows.start + piece.shape[0]) - first
            if count > 0:
                part = _read(piece, first - piece.rows.start, (count, *piece.shape[1:]))
                parts.append((Rows(first - start, (stop - start, *piece.shape[1:])), part))
        first_piece = self._pieces[name][0]
        return _join(name, parts) if parts else torch.empty((0, *first_piece.shape[1:]), dtype=first_piece.dtype)


def _read_header(path: Path) -> Iterator[tuple[str, _Piece]]:
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            text = file.read(min(size, path.stat().st_size))
    except OSError as error:
        raise CheckpointError(format_error(str(path), f"cannot be read: {error.strerror}")) from error
    header, rows = _parse_header(path.name, text)
    for name, entry in header.items():
        shape = tuple(entry["shape"])
        offset = 8 + size + entry["data_offsets"][0]
        yield name, _Piece(path, offset, _TORCH_DTYPES[entry["dtype"]], shape, rows.get(name, Rows(0, shape)))


def _read(piece: _Piece, row: int, shape: tuple[int, ...]) -> Tensor:
    """Return rows of a piece from its row `row` on."""
    if not (count := prod(shape)):
        return torch.empty(shape, dtype=piece.dtype)
    data = bytearray(count * piece.dtype.itemsize)
    try:
        with piece.path.open("rb") as file:
            file.seek(piece.offset + row * prod(piece.shape[1:]) * piece.dtype.itemsize)
            size = file.readinto(data)
    except OSError as error:
        raise CheckpointError(format_error(str(piece.path), f"cannot be read: {error.strerror}")) from error
    if size != len(data):
        raise CheckpointError(format_error(str(piece.path), "has become shorter while it was read"))
    return torch.frombuffer(data, dtype=piece.dtype).view(shape)


def is_equal(tensor: Tensor, other: Tensor) -> bool:
    """Return whether two tensors on one device are equal in every bit, so that 0.0 differs from -0.0."""
    if tensor.dtype != other.dtype or tensor.shape != other.shape:
        return False
    bits = _INTEGERS[tensor.element_size()]  # four times as fast as bytes
    return torch.equal(tensor.detach().view(bits), other.detach().view(bits))


def tensor_differences(stored: Mapping[str, NamedTensors], replayed: Mapping[str, NamedTensors]) -> Iterator[str]:
    """Yield a line for each tensor that differs in any bit, starting with its name; the devices may differ.

    Args:
        stored: File name -> named tensors, as in a snapshot.
        replayed: The same, computed again.
    """
    for file in dict.fromkeys([*stored, *replayed]):
        before, after = stored.get(file, {}), replayed.get(file, {})
        for name in sorted({*before, *after}):
            if name not in before or name not in after:
                yield f"{file}/{name} is only in the {'checkpoint' if name in before else 'replay'}"
            elif difference := _describe_difference(before[name], after[name]):
                yield f"{file}/{name} differs: {difference}"


def _describe_difference(stored: Tensor, replayed: Tensor) -> str:
    """Return what differs between two tensors; empty if they are equal in every bit."""
    stored, replayed = stored.detach().cpu(), replayed.detach().cpu()
    if stored.dtype != replayed.dtype or stored.shape != replayed.shape:
        return f"stored {stored.dtype} {tuple(stored.shape)}, replayed {replayed.dtype} {tuple(replayed.shape)}"
    changed = (_as_bytes(stored) != _as_bytes(replayed)).view(stored.numel(), stored.element_size()).any(1)
    if not changed.any():
        return ""
    if stored.is_complex():
        stored, replayed = torch.view_as_real(stored), torch.view_as_real(replayed)
    # Integers above 2**53 may be equal in float64; the comparison of bytes has decided already.
    largest = (stored.double() - replayed.double()).abs().max().item()
    return f"{int(changed.sum())} of {changed.numel()} values, by at most {largest:.3g}"


def _as_bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)
