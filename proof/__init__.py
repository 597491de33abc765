"""A matrix that is run: servers, and what goes wrong while they serve. `scripts/prove` runs it."""
