"""Live: what is started and stopped, replaced and refreshed, and who still uses it."""
