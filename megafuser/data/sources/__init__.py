"""Where samples come from: readers of files and of data sets, and what makes a sample of a line.

Readers cut a source into blocks of about a megabyte (`records`), which any process parses (`samples`). Prompts and ids
are not made here: `data.templates` and `data.tokenization`.
"""
