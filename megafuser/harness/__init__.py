"""A fused model in EleutherAI's lm-evaluation-harness.

`language_model` is the harness's `LM`, `answers` what it has been asked before, `sandbox` where generated code runs,
`evaluate` the command. A layer above `inference`. Losses on a run's own validation data are `report`.
"""
