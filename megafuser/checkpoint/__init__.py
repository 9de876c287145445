"""Checkpoints on disk: megatron-core's torch_dist files, written and read without executing anything, and manifests.

What a training run saves and loads is `megafuser.training`'s matter, Hugging Face's formats are
`megafuser.conversion`'s. Both use the files, manifests and hashes here.
"""
