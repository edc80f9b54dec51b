// The smallest kernel that computes something, for what a launch costs: y = scale x.
//   Formula    y[i] = scale x[i]
//   Reference  numpy
//   Shapes     x, y [N] float32
//   Mapping    a thread owns an element
//   Numerics   float32
//   Traffic    8 bytes per element; bandwidth
#include "tinyvllm/prelude.cuh"

extern "C" __global__ void scale(float* y, const float* x, float factor, int size) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    pdl_wait();  // y may still be read by the predecessor's predecessor
    pdl_launch_dependents();
    if (i < size) y[i] = factor * x[i];
}
