"""What a client or a server can see of its socket, seen twice: directly, and with udsproxy in between.

Rules: a test is one thing that can be seen, and its docstring says which. It runs with the same assertions on both
routes; "direct" proves that they are what the kernel does. That something does not happen is shown by a marker that
comes after it in order. Nothing is marked as expected to fail, nothing is skipped.
"""
