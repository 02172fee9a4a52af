"""The independent reference: every method from its formulas, in NumPy and torch, without a line of the engine."""
