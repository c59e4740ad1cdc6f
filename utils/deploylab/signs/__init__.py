"""RoadSigns, the task of the course: fifteen road signs and ``none``, drawn and photographed by a program."""

from __future__ import annotations

CLASSES: tuple[str, ...] = (
    "speed_limit_30",
    "speed_limit_50",
    "speed_limit_80",
    "priority_road",
    "yield",
    "stop",
    "no_vehicles",
    "no_entry",
    "general_caution",
    "turn_right_ahead",
    "turn_left_ahead",
    "ahead_only",
    "keep_right",
    "keep_left",
    "roundabout",
    "none",
)
"""The sixteen class names; the position is the class index of every network and data set of the course."""
