"""What a person sees of a run: progress, TensorBoard, warnings, `megafuser status`, the profiler's traces.

Nothing here changes a number of the training. The loop calls it by `training.metric_sinks`.
"""
