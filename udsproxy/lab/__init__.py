"""Something to call, and something to call it with, where there is no nginx and no php-fpm: a FastCGI server
(responder.py), a FastCGI client and load (requester.py), and the two with a proxy between them (demo.py)."""
