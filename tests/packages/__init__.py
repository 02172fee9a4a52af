"""The methods beside PyPI packages that implement them, on a trained network; skipped where a package is missing."""
