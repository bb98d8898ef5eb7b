"""Decides what to run and remembers what ran. No torch here; ray only in driver.py."""

__version__ = "0.1.0"
