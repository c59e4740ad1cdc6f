"""Graders for the exercises: one module a lab, one check an exercise.

In a notebook::

    from deploylab.checks import lab00 as check

    check.top_k(top_k)

A check prints one line and never raises: the exercise is not attempted yet, solved, or wrong in a way it names.
"""
