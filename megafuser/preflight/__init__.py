"""What is looked at on every node before a long job: `megafuser preflight STAGE --config C`, under srun.

It takes seconds, writes nothing, and says which node has what is wrong.
"""
