"""Serve sentence embeddings with all-MiniLM-L6-v2, as an application of lifespan dependencies.

The chain: settings -> model files and device -> tokenizer and model -> encoder -> routes.
"""
