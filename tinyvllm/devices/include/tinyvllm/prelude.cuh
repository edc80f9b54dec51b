// Everything a kernel may use, on a GPU (NVRTC, no CUDA header) and on the emulator (g++, no CUDA at all).
//
// A kernel source includes this file and nothing else, and defines `extern "C" __global__` functions. What NVRTC
// builds in (threadIdx, __syncthreads, __shfl_*_sync, atomicAdd, expf, float4, ...) is there on both; the primitives
// below have no built-in name. On the emulator each one is also where a mistake becomes visible: a misaligned load,
// a missing wait, a read of a predecessor's output too early.
#pragma once

#if defined(TINYVLLM_EMULATOR)
#include "tinyvllm/emulator.cuh"
#define TINYVLLM_DEVICE TINYVLLM_INLINE
#else
#include "tinyvllm/device.cuh"
#define TINYVLLM_DEVICE __device__ __forceinline__
#endif

#include "tinyvllm/numbers.cuh"
#include "tinyvllm/memory.cuh"
#include "tinyvllm/async_copy.cuh"
#include "tinyvllm/warp.cuh"
#include "tinyvllm/block.cuh"
#include "tinyvllm/mma.cuh"
#include "tinyvllm/wgmma.cuh"
#include "tinyvllm/grid.cuh"

using namespace tinyvllm;
