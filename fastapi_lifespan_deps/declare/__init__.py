"""Declare and plan: from a signature to the nodes to start. Pure, and synchronous."""
