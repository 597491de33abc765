"""Puts this library in the place of FastAPI, for the tests of others; and counts, to prove it."""

import functools
from collections import Counter

import fastapi
import fastapi.applications
import fastapi.param_functions

from fastapi_lifespan_deps import Depends, LifespanFastAPI

applications: Counter[str] = Counter()


def swap(**options):
    """Make it so. `options` are given to every application, after its own."""
    stock_init = fastapi.FastAPI.__init__

    @functools.wraps(stock_init)
    def counting_init(self, *args, **kwargs):
        applications["ours" if isinstance(self, LifespanFastAPI) else "stock"] += 1
        for name, value in options.items():
            kwargs[name] = [*(kwargs.get(name) or ()), *value]
        stock_init(self, *args, **kwargs)

    fastapi.FastAPI.__init__ = counting_init
    fastapi.FastAPI = fastapi.applications.FastAPI = LifespanFastAPI
    fastapi.Depends = fastapi.param_functions.Depends = Depends


def swapped():
    return applications["ours"] > 0 and applications["stock"] == 0
