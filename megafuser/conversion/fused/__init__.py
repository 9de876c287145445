"""A fused model as one directory that transformers loads: its specialists, its gate, and the code that joins them.

A single specialist's way out is `conversion.mcore_to_hf`.
"""
