"""A real pretrained model and two fine-tunes of it, fused and evaluated."""
