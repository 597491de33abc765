"""The example beside other model servers: the same model, texts and clients.

Each server has an environment of its own (`NAME.txt` says what is in it) and processes of its own.
`litserve.py`, `bentoml.py` and `embedder.py` run there; all else runs beside the example.
"""
