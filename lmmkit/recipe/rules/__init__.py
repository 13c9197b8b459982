"""Rules between keys, as pure functions from a section of the recipe to problems.

Each rule reads one section, so a typo in another section does not hide its problems. `where` is a dotted
key; `read` adds file and line. `by_key` has all of them by the keys to which they apply.
"""
