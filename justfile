# What must pass before a commit.
check:
    ruff check .
    ruff format --check .
    pyright
    pytest -m "not slow"

test:
    pytest -m "not slow"

slow:
    pytest -m slow

gpu:
    pytest -m gpu
