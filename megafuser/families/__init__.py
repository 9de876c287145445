"""Model families: which Hugging Face configurations and weights a specialist can be made of.

A family is one file in `megafuser.families.known`. Here is what they share: what a family must say (`family`), how its
weights become megatron-core's (`weight_mapping`), and how its config.json becomes an architecture card (`config_json`).

Not here: reading and writing of weights (`megafuser.checkpoint`), and the model itself (`megafuser.specialist`): a
family whose layers compute something else needs a layer spec there as well.
"""
