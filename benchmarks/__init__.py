"""Measurements against a baseline: ``make bench NAME=x`` runs ``benchmarks/x.py``."""
