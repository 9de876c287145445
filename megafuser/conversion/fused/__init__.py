"""A fused model as one directory that transformers loads: its specialists, its gate, and the code that joins them."""
