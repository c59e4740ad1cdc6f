"""Bundles: one folder with all that a machine without a network needs, and a script that installs it there.

:mod:`.targets` says which machines, :mod:`.wheels` fetches their packages, :mod:`.manifest` writes and verifies sizes
and hashes, :mod:`.build` puts the folder together. On the other machine :file:`hardware/bundle/install.sh` runs.
"""
