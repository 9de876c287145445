"""Responses of a fused model, token by token: caches, steps, sampling, and what shares a step with what.

`engine` runs one step of many requests on all ranks; `scheduler` decides what goes into it; `prompts` makes ids of
texts and `text` texts of ids; `open_model` gets all that from a checkpoint. Nothing here knows of HTTP or benchmarks.
"""
