"""Checkpoints on disk: manifests with hashes, atomic directories, conversion from Hugging Face to megatron-core.

The fused model's own run checkpoints are written by `megafuser.training`; they use the manifests and directories here.
"""
