"""From JSONL files to packed rows: templates, tokenization, the shared vocabulary, sampling, packing, batches.

Import from the modules directly; torch is needed by `batch` and `loader` only, tokenizers come from transformers."""
