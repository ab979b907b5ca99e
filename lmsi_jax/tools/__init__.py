"""Compiles a run for TPUs that are not here: memory, FLOPs, collectives and time, before a pod is
paid for.
"""
