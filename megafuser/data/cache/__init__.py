"""Tokenized samples on the disk: made once, by content, and memory-mapped by every process of every stage.

How a sample becomes ids is `data.tokenization`.
"""
