"""A soak: servers that are changed, broken and restarted at random under load, for a long time.

`scripts/soak` runs it. Nothing may get lost, and nothing may grow.
"""
