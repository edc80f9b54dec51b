// A producer and a consumer for programmatic dependent launch: y = scale x, then z = y + w.
//   Formula    y[i] = scale x[i]; z[i] = y[i] + w[i]
//   Reference  numpy
//   Shapes     x, y, z, w [N] float32
//   Mapping    a thread owns an element; the consumer has w in a register before it waits for y
//   Numerics   float32
//   Traffic    12 bytes per element; bandwidth
#include "tinyvllm/prelude.cuh"

extern "C" __global__ void produce(float* y, const float* x, float scale, int size) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    pdl_wait();  // y may still be read by the predecessor's predecessor
    pdl_launch_dependents();
    if (i < size) y[i] = scale * x[i];
}

extern "C" __global__ void consume(float* z, const float* y, const float* w, int size) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    pdl_launch_dependents();
    const float mine = i < size ? w[i] : 0.0f;
    pdl_wait();  // y is complete before it is read
    if (i < size) z[i] = y[i] + mine;
}
