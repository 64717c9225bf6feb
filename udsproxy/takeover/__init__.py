"""In place of a live socket: taking its path over, and giving it back.

- ``guardian``: how a path is put back, and the process that does so when we cannot; it imports nothing of ours
- ``listener``: a listening socket that stands where another's stood

Rules:

* While we stand at PATH the real socket is at ``PATH.udsproxy``, always: from the two names alone anything can find
  out what happened, and mend it.
* Both are swapped in one step (renameat2(2), RENAME_EXCHANGE): there is no moment without a socket at the path.
* A socket on which somebody listens is never removed.
"""
