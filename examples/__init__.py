"""Runnable examples: a real ImageNet CNN, from a published checkpoint to explained photos."""
