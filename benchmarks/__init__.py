"""Benchmarks: what a request, a call, the start, live operations, and a server under load cost.

Run `scripts/bench`.
"""
