"""Published ideas as plugins, one in each file. Each file says what it simplifies; none needs a change of lmmkit.

Recipes on the scenes world are `lmmkit train zoo/NAME --root scenes`.
"""
