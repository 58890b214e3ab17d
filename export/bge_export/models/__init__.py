"""Building: one file per `model_type`, and what the families share.

In: a configuration, Weights and what the graph is to give. Out: the graph, in calls of `graph`'s operations.
The unlowered graph is the truth: it runs with standard operators alone.
Targets, precisions and providers are not known here.
"""
