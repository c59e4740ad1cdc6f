"""DeployLab: one model, every engine, checked before it is timed.

Importing this package does one thing besides naming its version: it switches vendors' telemetry off
(see :mod:`deploylab.privacy`), because that works only before the engines are imported.
"""

from deploylab import privacy

privacy.switch_telemetry_off()

__version__ = "0.1.0"
