"""Attention launches for a sanitizer, which runs them in a process of its own; see ``test_attention_mutants``."""

from __future__ import annotations

from tests.kernels.attention_cases import LAYOUTS, make_case, padding_of, sizes_of
from tests.kernels.mutants import device_of
from tests.kernels.support import poisoned, put
from tinyvllm.device import Gpu
from tinyvllm_attention.gpu.attention_decode import AttentionDecode
from tinyvllm_attention.gpu.attention_prefill import AttentionPrefill


def run_decode(device: Gpu, folder: str | None = None) -> None:
    """Whole items, items shared by blocks, a window, groups of four and of five, several warps."""
    device = device_of(device, folder)
    for layout, window in ((LAYOUTS[0], None), (LAYOUTS[6], 90)):
        case = make_case(sizes_of(layout, window), [1024, 5, 130], [1, 1, 1], seed=0)
        out = poisoned(device, case.query.shape)
        AttentionDecode(device, sizes=case.sizes)(out, *case.put(device))


def run_splits(device: Gpu, folder: str | None = None) -> None:
    """Batch-invariant: one warp a block, fixed cuts."""
    device = device_of(device, folder)
    case = make_case(sizes_of(LAYOUTS[0], None, batch_invariant=True), [1024, 5, 600], [1, 1, 1], seed=0)
    out = poisoned(device, case.query.shape)
    AttentionDecode(device, sizes=case.sizes)(out, *case.put(device))


def run_prefill(device: Gpu, folder: str | None = None) -> None:
    """A chunk after a context, a whole prompt, a single token; a last block of rows that is not full."""
    device = device_of(device, folder)
    for batch_invariant in (False, True):
        case = make_case(sizes_of(LAYOUTS[0], None, batch_invariant), [1024, 21, 7], [3, 21, 1], seed=0)
        out = poisoned(device, case.query.shape)
        AttentionPrefill(device, sizes=case.sizes)(out, *case.put(device), put(device, case.cu_seqlens_q))


def run_padding(device: Gpu, folder: str | None = None) -> None:
    """Steps of padding alone: decodes, a prompt's step, and the decode part of one."""
    device = device_of(device, folder)
    for batch_invariant in (False, True):
        case = padding_of(sizes_of(LAYOUTS[0], None, batch_invariant), 3, 70)
        query, *_ = arrays = case.put(device)
        ends, out = put(device, case.cu_seqlens_q), poisoned(device, case.query.shape)
        decode = AttentionDecode(device, sizes=case.sizes)
        rows = (3, *query.shape[1:])
        decode(out.view(rows), query.view(rows), *arrays[1:])
        decode(out, *arrays, cu_seqlens_q=ends)
        AttentionPrefill(device, sizes=case.sizes)(out, *arrays, ends)
