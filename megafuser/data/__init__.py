"""From JSONL files to packed rows: templates, tokenization, the shared vocabulary, sampling, packing, batches.

Import from the modules directly. Tokenizers come from transformers. What a packed row is, is said by the model that
takes it: `fusion.row`.
"""
