"""From JSONL files to packed rows: templates, tokenization, the shared vocabulary, sampling, packing, rows as tensors.

Import from the modules directly; torch is needed by `row_building` and `loader` only, tokenizers come from
transformers.
"""
