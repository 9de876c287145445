"""What examples have in common: jobs and their files, the samples of a fused run, losses, intervals and tables."""
