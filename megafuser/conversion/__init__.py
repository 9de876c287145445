"""Conversion of models between Hugging Face directories and megatron-core's checkpoints, in both directions, proven.

`hf_to_mcore` and `mcore_to_hf` are the two ways for one specialist, in blocks of rows, so that memory does not grow
with the model; `fused` is the way out for a whole fused model. Which tensor goes where is `megafuser.families`; what a
checkpoint's files are is `megafuser.checkpoint`.
"""
