"""Measurements, which no test run makes."""
