"""Call: functions that are called with their dependencies outside of requests."""
