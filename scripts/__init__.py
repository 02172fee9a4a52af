"""Scripts of the maintainers; not installed."""
