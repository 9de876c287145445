"""The report on a checkpoint: losses of the fused model and of its specialists on validation data, as JSON and a page.

Not here: how a row's losses are computed (`fusion`) or summed over ranks (`training`).
"""
