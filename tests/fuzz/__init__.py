"""Mutated bundles, models and photos: only an `EngineError` or a right result may come out; see docs/fuzzing.md."""
