"""In place of a live socket: taking its path over, and giving it back.

- ``names``: the two names of a tapped socket, and how its path is put back, as a table
- ``guardian_process``: the process that does that when the proxy has died, or stands still
- ``guardian``: that process, as the proxy sees it
- ``place``: a path to take over, and the server's own socket there
- ``listener``: a listening socket that stands where another's stood
- ``restore``: putting back what a tap left that was killed, with its guardian

Rules:

* While we stand at PATH the real socket is at ``PATH.udsproxy``, always: from the two names alone anything can find
  out what happened, and mend it.
* Both are swapped in one step (renameat2(2), RENAME_EXCHANGE): there is no moment without a socket at the path.
* The directory is held open from the first look, and everything in it is done by that descriptor
  (`udsproxy.kernel.directory`): whoever can rename directories leads us nowhere else.
* A socket on which somebody listens is never removed; a file that is not known is neither removed nor copied from.
* ``names`` and ``guardian_process`` import the standard library and `udsproxy.kernel.directory` alone: the process
  is small, and up in some 20 ms.
"""
