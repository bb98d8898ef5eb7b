"""Executes one task. torch, never ray, never optuna; runs without pydantic and typer too."""
