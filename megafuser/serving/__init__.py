"""A fused model behind an OpenAI-compatible HTTP API, with its metrics and a page to try prompts on.

One thread owns the engine (`engine_loop`); handlers of HTTP requests (`app`) give it requests and wait for tokens. Not
here: how tokens are made (`inference`).
"""
