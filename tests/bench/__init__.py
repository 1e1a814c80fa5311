"""Measurements against a floor of the same run; asserted nowhere, because a number depends on the machine."""
