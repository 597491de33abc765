"""Benchmarks: what a request, the start, and a server under load cost. Run `scripts/bench`."""
