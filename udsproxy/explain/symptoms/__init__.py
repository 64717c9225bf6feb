"""Lines without an errno, or with one that is not the socket's: one table.

Rules: as in `udsproxy.explain.errors`. The first that matches counts; a *weak* one only where no errno is found.
"""

from __future__ import annotations

from udsproxy.explain.symptoms.apache import APACHE
from udsproxy.explain.symptoms.haproxy import HAPROXY
from udsproxy.explain.symptoms.model import Symptom
from udsproxy.explain.symptoms.nginx import STDERR, UPSTREAM
from udsproxy.explain.symptoms.nginx_own import OWN
from udsproxy.explain.symptoms.others import OTHERS
from udsproxy.explain.symptoms.php_fpm import PHP_FPM
from udsproxy.explain.symptoms.security import SECURITY
from udsproxy.explain.symptoms.servers import SERVERS

__all__ = ["SYMPTOMS", "Symptom"]

SYMPTOMS: tuple[Symptom, ...] = (
    *STDERR,
    *UPSTREAM,
    *PHP_FPM,
    *OWN,
    *APACHE,
    *HAPROXY,
    *SERVERS,
    *SECURITY,
    *OTHERS,
)
