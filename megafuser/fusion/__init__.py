"""What joins specialists: the gate, the mixture cross-entropy, and the fused model that the pipeline schedules run.

Not here: how a specialist is built (`megafuser.specialist`) and how the fused model is trained (`megafuser.training`).
"""
