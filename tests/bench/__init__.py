"""The benchmark: what udsproxy costs, next to what else one might put in its place.

``python -m tests.bench`` measures speed against other proxies, ``python -m tests.bench.memory`` measures
memory. Both are run from the repository root, need nothing but the standard library and the programs they
name, and use nothing of /etc.

- ``stage``: the temporary directory, the processes in it, and their certain end
- ``layout``: which socket is where, and how a program is found
- ``servers``: php-fpm, redis, the front nginx and the bulk sink, started once
- ``contenders``: what is put between client and server, started once
- ``workloads``: one measurement of one contender
- ``bulk``: the sender and the sink of the bulk workload, processes of their own
- ``report``: tables, targets, the machine

Rules: contenders are measured in turn within each round, so that a slow moment of the machine hits all of
them; ratios are taken within a round; no measurement is left out or repeated.
"""
