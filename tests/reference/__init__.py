"""The independent reference: Ada-SISE from its formulas, in NumPy and torch, without a line of the engine."""
