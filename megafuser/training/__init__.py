"""The two stages: pipeline passes, gradients, optimizer, metrics, run checkpoints, and the loop that ties them.

Megatron-core's pieces put together, not copies of them. Not here: what a step is made of (`fusion`, `data`).
"""
