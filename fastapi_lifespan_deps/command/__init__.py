"""Command: what a person does with it at a prompt."""
