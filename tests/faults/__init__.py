"""The fault campaign: bundles, exports and checkpoints are damaged at random, and every outcome is counted.

    scripts/faults                 the whole campaign, some minutes
    scripts/faults --size 0.1      a tenth of it

An outcome is good ("refused", "the same vectors", "whole") or a fault: a traceback, a bundle lost, a wrong vector, a
process that ended by a signal that nobody sent.
"""
