"""Damaged copies of files, drawn from a random generator so that each can be repeated."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import yaml

from tests.support.hostile_commands import NASTY_TEXTS
from trainer.shapes import seal


def damaged(random: Random, data: bytes, name: str) -> bytes:
    """Return damaged content of a file; text documents are also damaged in their structure."""
    ways: list[Callable[[Random, bytes], bytes]] = [_flip, _flip, _cut, _insert, _repeat, _replace]
    if name.endswith((".json", ".jsonl", ".yaml")):
        ways += [_swap_value] * 8
    elif name.endswith(".safetensors"):
        ways += [_change_header] * 4
    elif name.endswith((".csv", ".tsv", ".txt", ".log")):
        ways += [_change_field] * 4
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        data = random.choice(ways)(random, data)
    return data


def _flip(random: Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 3, 20)) if data else 0):
        # The beginning and the end hold the structure of most formats.
        near = random.randrange(min(len(data), 64))
        position = random.choice((random.randrange(len(data)), near, -1 - near))
        changed[position] = random.choice((changed[position] ^ 1 << random.randrange(8), 0, 255, random.randrange(256)))
    return bytes(changed)


def _two_positions(random: Random, data: bytes) -> tuple[int, int]:
    first, second = sorted(random.randrange(len(data) + 1) for _ in range(2))
    return first, second


def _cut(random: Random, data: bytes) -> bytes:
    begin, end = _two_positions(random, data)
    return random.choice((data[:begin], data[begin:], data[:begin] + data[end:]))


def _insert(random: Random, data: bytes) -> bytes:
    position = random.randrange(len(data) + 1)
    texts = [text.encode("utf-8", "surrogateescape") for text in NASTY_TEXTS]
    inserted = random.choice((*texts, b"\xff\xfe", b"\x00" * 1000, b'"', b"\n" * 50, random.randbytes(20)))
    return data[:position] + inserted + data[position:]


def _repeat(random: Random, data: bytes) -> bytes:
    begin, end = _two_positions(random, data)
    return data[:end] + data[begin:end][:100_000] * random.choice((1, 2, 50)) + data[end:]


def _replace(random: Random, data: bytes) -> bytes:
    deep = (b"[" * 100_000, b'{"a":' * 100_000)
    signatures = (b"\xff\xfe", b"%PDF-1.4", b"\x80\x04K\x01.", b"PK\x03\x04", gzip.compress(data))
    return random.choice((b"", b"null", b"[1,2]", b"{}", b"\x00" * 100, b"9" * 5000, *deep, *signatures))


def _hostile_value(random: Random) -> Any:
    deep: Any = 1
    for _ in range(random.choice((3, 50, 500))):
        deep = random.choice(([deep], {"a": deep}))
    numbers = (0, -1, 10**30, 1.5, float("nan"), float("inf"))
    texts = (random.choice(NASTY_TEXTS), "../../x", "/dev/zero")
    return random.choice((None, True, *numbers, *texts, [], {}, [1, 2], {"a": 1}, [None], deep))


def _swap_value(random: Random, data: bytes) -> bytes:
    """Replace, delete or copy a value of a JSON or YAML document, or of a line of JSON Lines."""
    lines = data.decode(errors="replace").splitlines() or [""]
    is_lines = len(lines) > 1 and lines[0].startswith("{") and lines[0].endswith("}")
    number = random.randrange(len(lines)) if is_lines else 0
    text = lines[number] if is_lines else "\n".join(lines)
    is_json = text.startswith(("{", "["))
    try:
        tree = json.loads(text) if is_json else yaml.safe_load(text)
        places = list(_places(tree))
        holder, key = random.choice(places)
        draw = random.random()
        if draw < 0.2:
            del holder[key]
        elif draw < 0.4:
            other, name = random.choice(places)
            holder[key] = json.loads(json.dumps(other[name], default=str))
        else:
            holder[key] = _hostile_value(random)
        text = json.dumps(tree, indent=None if is_lines else 1) if is_json else yaml.safe_dump(tree, sort_keys=False)
    except (ValueError, IndexError, RecursionError, yaml.YAMLError):
        return _flip(random, data)
    changed = "\n".join([*lines[:number], text, *lines[number + 1 :]]) if is_lines else text
    return changed.encode("utf-8", "surrogatepass")


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each mapping or list of a document with each of its keys."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield tree, key
        yield from _places(value)


def _change_field(random: Random, data: bytes) -> bytes:
    lines = data.split(b"\n")
    number = random.randrange(len(lines))
    separator = random.choice((b",", b"\t", b";", b'"', b"|"))
    fields = lines[number].split(separator)
    fields[random.randrange(len(fields))] = random.choice(NASTY_TEXTS).encode("utf-8", "surrogateescape")
    lines[number] = separator.join(fields * random.choice((1, 1, 2, 100)))
    return b"\n".join(lines)


def _change_header(random: Random, data: bytes) -> bytes:
    size = int.from_bytes(data[:8], "little")
    if not 0 < size < len(data):
        return _flip(random, data)
    header = _swap_value(random, data[8 : 8 + size])
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def reseal(file: Path) -> None:
    """Make the checkpoint manifest next to a damaged file fit it, so that the damage is met behind the checksums."""
    manifest = file.parent / "MANIFEST.json"
    try:
        fields = json.loads(manifest.read_bytes())
        for name, entry in fields["files"].items():
            content = (file.parent / name).read_bytes()
            entry |= {"size": len(content), "crc32": f"{zlib.crc32(content):08x}"}
        del fields["checksum"]
        checksum = zlib.crc32(json.dumps(fields, sort_keys=True).encode())
        sealed = json.dumps({**fields, "checksum": f"{checksum:08x}"}, indent=1, sort_keys=True) + "\n"
        manifest.write_text(sealed, encoding="utf-8")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return  # there is none, or it is the damaged file


def reseal_document(file: Path) -> None:
    """Make the checksum inside a damaged document fit it."""
    try:
        fields = json.loads(file.read_bytes())
        if "checksum" in fields:
            file.write_text(json.dumps(seal(fields)), encoding="utf-8")
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return  # it is no longer a document


def replace_metadata(file: Path, change: Callable[[bytes], bytes]) -> None:
    """Change the JSON in the metadata of a file of predictions."""
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(file)
    metadata = {
        key: change(value) if key.startswith(b"trainer.") else value for key, value in table.schema.metadata.items()
    }
    pyarrow.parquet.write_table(table.replace_schema_metadata(metadata), file)


def write_variants(folder: Path) -> None:
    """Write the rows of `train.csv` in every format that a data file may have."""
    import pyarrow as pa
    import pyarrow.feather
    import pyarrow.parquet

    source = folder / "train.csv"
    with source.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    table = pa.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, folder / "train.parquet")
    pyarrow.feather.write_feather(table, str(folder / "train.feather"))
    with pa.OSFile(str(folder / "train.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "train.json").write_text(json.dumps(rows), encoding="utf-8")
    lines = ("\t".join(row.values()) + "\n" for row in ({key: key for key in rows[0]}, *rows))
    (folder / "train.tsv").write_text("".join(lines), encoding="utf-8")
    (folder / "train.csv.gz").write_bytes(gzip.compress(source.read_bytes()))
