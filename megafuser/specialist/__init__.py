"""One specialist: a megatron-core `GPTModel` made from an architecture card, ending at its last hidden state.

Not here: weights on disk (`megafuser.checkpoint`) and everything that joins specialists (`megafuser.fusion`).
"""
