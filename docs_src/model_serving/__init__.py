"""Serve sentence embeddings with all-MiniLM-L6-v2, as an application of lifespan dependencies.

The chain: settings -> model source -> model files -> tokenizer, model -> encoder -> batcher ->
routes. Beside it: device, metrics, shutdown, swapper.
"""
