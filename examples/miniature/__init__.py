"""Three specialists from scratch, fused, against all that one could do instead, on three seeds."""
