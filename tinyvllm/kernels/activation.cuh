// The activation of the gated MLP, used wherever the gate is at hand.
#pragma once

/// x / (1 + exp(-x)). For x below about -88 the exponential is infinite and the quotient -0.
TINYVLLM_DEVICE float silu(float x) { return x / (1.0f + expf(-x)); }
