# What must pass before a commit.
check:
    ruff check .
    ruff format --check .
    pyright
    pytest -n 2

test:
    pytest -n 2

slow:
    pytest -m slow

gpu:
    pytest -m gpu
