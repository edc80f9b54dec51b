"""Training rows: the corpus as token ids, packed; made by many processes, and the same however many they are."""

import multiprocessing
from array import array
from itertools import islice
from pathlib import Path

from tokenizers import Tokenizer

from tinyvllm.demo import chat
from tinyvllm.demo.making import corpus, make_tokenizer

LEARN = 1 << 14
"""Added to the ids of tokens that the model learns to write; ids are below it."""

ROWS_PER_SHARD = 1024
_DOCUMENTS_AT_ONCE = 1000


def make_rows(tokenizer_path: Path, seed: int, shards: int, row_length: int, processes: int) -> "array[int]":
    """``shards * ROWS_PER_SHARD`` rows of ``row_length`` token ids, each beginning with a document."""
    jobs = [(tokenizer_path, f"{seed} {shard}", row_length) for shard in range(shards)]
    rows = array("h")
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        for shard in pool.imap(_make_shard, jobs):
            rows.frombytes(shard)
    return rows


def _make_shard(job: tuple[Path, str, int]) -> bytes:
    tokenizer_path, seed, row_length = job
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    pad = make_tokenizer.id_of(tokenizer, chat.PAD)
    documents = corpus.documents(seed)
    rows, row = array("h"), array("h")
    while True:
        for tokens in _encode(tokenizer, list(islice(documents, _DOCUMENTS_AT_ONCE))):
            if len(row) + len(tokens) > row_length:
                row.extend([pad] * (row_length - len(row)))
                rows.extend(row)
                if len(rows) == ROWS_PER_SHARD * row_length:
                    return rows.tobytes()
                row = array("h")
            row.extend(tokens[:row_length])


def _encode(tokenizer: Tokenizer, documents: list[list[corpus.Piece]]) -> list[list[int]]:
    """The ids of each document, ``LEARN`` added where it is to be learnt."""
    pieces = [piece.text for document in documents for piece in document]
    encoded = iter(tokenizer.encode_batch(pieces, add_special_tokens=False))
    result = []
    for document in documents:
        ids: list[int] = []
        for piece in document:
            mark = LEARN if piece.learn else 0
            ids += [token_id + mark for token_id in next(encoded).ids]
        result.append(ids)
    return result
