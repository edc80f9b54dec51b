"""Mutated safetensors files: whatever happens to a file, nothing but LoadError comes out, or correct tensors."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save

from tinyvllm.errors import LoadError
from tinyvllm_loaders.header import header_size, parse_header
from tinyvllm_loaders.safetensors import SafetensorsFile

_STRANGE: list[Any] = [
    None,
    True,
    False,
    -1,
    0,
    1,
    2**31,
    2**63,
    2**64,
    10**30,
    0.5,
    "",
    "F32",
    "BF16",
    "I4",
    [],
    {},
    [[]],
]


def make_files() -> list[bytes]:
    rng = np.random.default_rng(0)
    many = {f"model.layers.{i}.w": rng.standard_normal((i, 3)).astype(np.float16) for i in range(5)}
    mixed = {"a": np.ones((2, 3), np.float32), "é": np.ones(4, ml_dtypes.bfloat16), "s": np.array(1, np.int64)}
    return [save(many, {"format": "pt"}), save(mixed), save({"x": np.zeros((0,), np.float32)}), save({})]


def flip_bytes(rng: random.Random, file: bytearray) -> bytearray:
    for _ in range(rng.randint(1, 4)):
        file[rng.randrange(len(file))] = rng.randrange(256)
    return file


def cut_or_pad(rng: random.Random, file: bytearray) -> bytearray:
    return file[: rng.randrange(len(file))] if rng.random() < 0.6 else file + bytes(rng.randint(1, 9))


def splice(rng: random.Random, file: bytearray) -> bytearray:
    a, b = sorted(rng.randrange(len(file)) for _ in range(2))
    at = rng.randrange(len(file))
    return file[:at] + file[a:b] + file[at:] if rng.random() < 0.5 else file[:a] + file[b:]


def change_length(rng: random.Random, file: bytearray) -> bytearray:
    size = int.from_bytes(file[:8], "little")
    size = rng.choice([0, 1, size - 1, size + 1, size * 2, len(file), 2**31, 2**63, 2**64 - 1, rng.randrange(2**64)])
    return bytearray(struct.pack("<Q", size % 2**64)) + file[8:]


def change_value(rng: random.Random, file: bytearray) -> bytearray:
    """Valid JSON whose meaning is changed somewhere."""
    size = int.from_bytes(file[:8], "little")
    header, data = json.loads(file[8 : 8 + size]), file[8 + size :]
    place: Any = header
    while True:
        if not place:
            break
        key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
        if isinstance(place[key], (dict, list)) and place[key] and rng.random() < 0.85:
            place = place[key]
            continue
        change = rng.random()
        if change < 0.2:
            del place[key]
        elif change < 0.5 and isinstance(place[key], int):
            place[key] += rng.choice([-8, -2, -1, 1, 2, 8])
        elif change < 0.6 and isinstance(place, dict):
            place[rng.choice(["shape", "dtype", "__metadata__", "new", "\ud800"])] = rng.choice(_STRANGE)
        else:
            place[key] = rng.choice(_STRANGE)
        break
    raw = json.dumps(header).encode()
    return bytearray(struct.pack("<Q", len(raw))) + raw + data


def change_token(rng: random.Random, file: bytearray) -> bytearray:
    """A piece of the header's text replaced, with the length adapted."""
    size = int.from_bytes(file[:8], "little")
    header = bytearray(file[8 : 8 + size])
    at = rng.randrange(len(header))
    new = rng.choice(
        [b'"', b"{", b"}", b"[", b",", b":", b"9" * 30, b"1e999", b"-0", b"\\u0000", b"\xc3", b"NaN", b" " * 9]
    )
    header[at : at + rng.randint(0, 6)] = new
    return bytearray(struct.pack("<Q", len(header))) + header + file[8 + size :]


MUTATIONS: list[Callable[[random.Random, bytearray], bytearray]] = [
    flip_bytes,
    cut_or_pad,
    splice,
    change_length,
    change_value,
    change_token,
]  # fmt: skip


def check_header(file: bytes) -> bool:
    """Whether it is accepted; what is accepted must cover the data exactly."""
    message = ""
    try:
        size = header_size(file[:8], len(file), "file")
        entries = parse_header(file[8 : 8 + size], len(file) - 8 - size, "file")
    except LoadError as error:
        message = str(error)
    assert message.isascii()
    assert len(message) < 600
    assert message or sum(entry.end - entry.start for entry in entries.values()) == len(file) - 8 - size
    return not message


def fuzz(num_files: int, seed: int) -> tuple[int, dict[str, int]]:
    """How many of the mutated headers were accepted, and how many each mutation had refused."""
    rng, originals, accepted = random.Random(seed), make_files(), 0
    refused = {mutate.__name__: 0 for mutate in MUTATIONS}
    for _ in range(num_files):
        mutate = rng.choice(MUTATIONS)
        file = bytes(mutate(rng, bytearray(rng.choice(originals))))
        if check_header(file):
            accepted += 1
        else:
            refused[mutate.__name__] += 1
    return accepted, refused


def test_unchanged_files_are_accepted() -> None:
    assert all(check_header(file) for file in make_files())


def test_a_hundred_thousand_mutated_headers_give_load_errors_and_nothing_else() -> None:
    accepted, refused = fuzz(100_000, seed=0)
    assert 1_000 < accepted < 50_000  # some mutations only touch data or names
    assert all(count > 2_500 for count in refused.values())


def test_mutated_files_on_disk_give_load_errors_or_tensors_of_the_announced_shape(tmp_path: Path) -> None:
    rng, originals, path = random.Random(2), make_files(), tmp_path / "model.safetensors"
    for _ in range(400):
        path.write_bytes(rng.choice(MUTATIONS)(rng, bytearray(rng.choice(originals))))
        try:
            file = SafetensorsFile(path)
        except LoadError:
            continue
        for name, entry in file.entries.items():
            if entry.dtype in ("F32", "F16", "BF16"):
                assert file.read(name).shape == entry.shape
            else:
                with pytest.raises(LoadError, match="supported are"):
                    file.read(name)
        file.close()
