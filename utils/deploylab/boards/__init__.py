"""Boards: emulated ones in a folder, real ones over SSH, and what their sensors say.

An emulated board is an unprivileged arm64 Debian userland that QEMU runs with the CPU of a Raspberry Pi or a Jetson
(:mod:`.profiles`, :mod:`.userland`, :mod:`.emulator`). It shows what runs, what is right, how much memory and how many
instructions it takes. It says nothing about time.
"""
