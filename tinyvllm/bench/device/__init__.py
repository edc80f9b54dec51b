"""Commands that time kernels, a decode step and the devices themselves, for whoever changes a kernel.

Each is run by itself: ``python -m tinyvllm.bench.device.attention``, ``decode_chain``, ``decode_step``, ``sampling``,
``cuda``, ``emulator``. Those with ``--device emulator`` run there too, to see that they run: its times say nothing.
"""
