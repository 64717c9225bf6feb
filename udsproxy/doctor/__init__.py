"""What will go wrong at a socket, before it does (``udsproxy doctor``).

- ``facts``       what is known, and nothing but that
- ``gathering``   finds it out: sock_diag, /proc; with ``configured_php_fpm`` and ``configured_nginx``, what the
  files of the programs that run have about the socket (``known``), as they find these (``reading``)
- ``php_fpm``     php-fpm's files; ``nginx_start``, ``nginx_syntax``, ``nginx_values``, ``nginx``: nginx's;
  ``nginx_log``: its error log
- ``rights``      may this user connect?
- ``findings``    what follows, from ``about_standstill``, ``about_socket``, ``about_systemd``, ``about_log``,
  ``about_clients``,
  ``about_php_fpm``, ``about_nginx`` and ``about_load``
- ``sizing``      how many workers, how long a queue; ``seen``: rate and times from a log

Rules: it only looks: it connects to nothing, and runs no program. What may not be read is told as such, and is
never an error. From facts on all is pure. Files are read up to a limit, whatever they are.
"""
