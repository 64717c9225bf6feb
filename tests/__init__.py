"""Mirrors the package; e2e/ runs the real programs; bench/ measures, and is not collected by pytest.

Rules: a test's docstring states the claim that it proves. Nothing waits for a fixed time, nothing depends on how
fast the machine is, nothing is skipped.
"""
