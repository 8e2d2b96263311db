"""Refuse to load, beside this version of bsm, a model that stores code of an earlier one.

Such code imports this module first. It can only be used in a process of its own.
"""

raise ImportError(
    "this process has already imported another version of bsm than the one stored with the model. "
    "Load the model in a process that has not imported bsm, or with "
    "pipeline.registry.predict.load_registered_model"
)
