"""The model-serving example under load, beside the same model without its batcher."""
