"""Ablations: a base recipe and its variants, trained over seeds, compared in one table.

`schema` and `grid` read the file; `arms` makes a recipe of each variant; `stage_runs` divides these into stages, which
equal ones share, and gives each a key (`planned_runs`); `store` is the folder where runs are kept. `trial` and
`forecast` say how long it takes. `results`, `intervals`, `summary`, `table` and `board` make the outcome.
"""
