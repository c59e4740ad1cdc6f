"""Measure engines without fooling yourself: statistics, one process per engine, interleaved rounds, a ledger."""
