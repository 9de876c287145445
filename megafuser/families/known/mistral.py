"""Mistral: a Llama without biases, whose attention may slide; it is supported where it does not."""

from megafuser.families.family import Family, decoder_weights, slides_with_a_window

FAMILY = Family(
    name="mistral", architecture="MistralForCausalLM", mappings=decoder_weights(), slides=slides_with_a_window
)
