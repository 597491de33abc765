"""Benchmarks: what a request, the start, live operations, and a server under load cost.

Run `scripts/bench`.
"""
