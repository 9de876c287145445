"""What is looked at on every node before a long job: `megafuser preflight STAGE --config C`, under srun.

It takes seconds, writes nothing, and says which node has what is wrong. What a stage itself refuses at its start is
`training.stage_start`.
"""
