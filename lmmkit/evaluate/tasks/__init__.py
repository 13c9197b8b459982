"""Evaluation tasks: each is `run(speaker, records, task) -> results`, by the kind a recipe names."""
