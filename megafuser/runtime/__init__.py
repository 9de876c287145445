"""Ranks, devices, seeds and process groups; the CPU backend that lets megatron-core run over gloo.

Nothing else in the package asks the environment who it is, or patches anything for a device. Nothing here knows of
specialists or samples.
"""
