"""Runs the code of plugins on real records, without a model, and reports what is wrong with it.

The micro-batches are real: records, views, layouts, packing. The tensor of a need is drawn, with its true
shape, as a part of the graph. So the dry run takes as long for a large model as for a small one.
"""
