"""Decides what to run and remembers what ran. No torch here; Who imports ray is said in cluster.py."""

__version__ = "0.1.0"
