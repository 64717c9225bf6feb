"""SELinux and AppArmor, in the audit log.

Rules: as in `udsproxy.explain.symptoms.nginx`.
"""

from __future__ import annotations

from udsproxy.explain.errors import Cause
from udsproxy.explain.symptoms.model import Symptom

SECURITY: tuple[Symptom, ...] = (
    Symptom(
        "SELinux: permissive=1",
        "SELinux or AppArmor would have forbidden this and only recorded it (permissive, or complain mode): it "
        "is not why something failed.",
        (
            Cause(
                "SELinux, or this domain, is in permissive mode; or the profile of AppArmor is in complain mode.",
                "`getenforce`; `semanage permissive -l`; `aa-status`.",
                "Nothing now. Before `setenforce 1`, allow it.",
            ),
        ),
        pattern=r"\bavc: .*permissive=1|apparmor=\"ALLOWED\"|^SELinux: permissive=1",
    ),
    Symptom(
        "SELinux: avc: denied, tclass=unix_stream_socket",
        "SELinux forbade it: connect() had EACCES, though the permissions are right. The client's domain "
        "(scontext) may not connect to a socket of the server's domain (tcontext).",
        (
            Cause(
                "The server runs in a domain of its own, or in none (unconfined_service_t, init_t).",
                "`ps -eZ | grep` the server; `sesearch -A -s httpd_t -c unix_stream_socket -p connectto`.",
                "Start the server so that it gets a domain httpd_t may use (httpd_exec_t for its program), or "
                "allow it: `ausearch -m avc -ts recent | audit2allow -M local`.",
            ),
        ),
        pattern=r"\bavc: +denied .*tclass=unix_(?:stream|dgram)_socket"
        r"|SELinux is preventing .* on the unix_(?:stream|dgram)_socket"
        r"|^SELinux: avc: denied, tclass=unix_stream_socket",
    ),
    Symptom(
        "SELinux: avc: denied { write }, tclass=sock_file",
        "SELinux forbade it by the label of the socket's file: connect() had EACCES, though the permissions "
        "are right.",
        (
            Cause(
                "The socket is in a directory whose label the client may not use (/tmp, /home, var_run_t).",
                "`ls -Z PATH`; `matchpathcon PATH`.",
                "Put it where the policy expects it (/run/php-fpm), and `restorecon -v PATH`; for another "
                "directory `semanage fcontext -a -t httpd_var_run_t`.",
            ),
        ),
        pattern=r"\bavc: +denied +\{[^}]*\b(?:write|getattr|read|open)\b[^}]*\}.*tclass=sock_file"
        r"|SELinux is preventing .* from (?:write|getattr|read|open) access on the sock_file"
        r"|^SELinux: avc: denied \{ write \}, tclass=sock_file",
    ),
    Symptom(
        "SELinux: avc: denied { create }, tclass=sock_file",
        "SELinux forbade the server to make or remove its socket's file: bind() had EACCES, though the "
        "permissions are right.",
        (
            Cause(
                "The directory's label is not one in which the server's domain may make sockets.",
                "`ls -Zd $(dirname PATH)`; `matchpathcon $(dirname PATH)`.",
                "A directory that the policy expects, below /run, and `restorecon -Rv` it.",
            ),
        ),
        pattern=r"\bavc: +denied .*tclass=sock_file|SELinux is preventing .* on the sock_file"
        r"|^SELinux: avc: denied \{ create \}, tclass=sock_file",
    ),
    Symptom(
        "SELinux: avc: denied, tclass=tcp_socket",
        "SELinux forbade a connection or a port of TCP; no Unix socket is involved.",
        (
            Cause(
                "The web server may not make connections of its own, or not to that port.",
                "`getsebool httpd_can_network_connect`; `semanage port -l`.",
                "`setsebool -P httpd_can_network_connect 1`, or a Unix socket in place of the port.",
            ),
        ),
        pattern=r"\bavc: +denied .*tclass=(?:tcp|udp)_socket|SELinux is preventing .* on the (?:tcp|udp)_socket"
        r"|^SELinux: avc: denied, tclass=tcp_socket",
    ),
    Symptom(
        'apparmor="DENIED"',
        "AppArmor forbade it: connect() (or bind(), for mknod) had EACCES, though the permissions are right. "
        "profile= names the rules, name= the path as AppArmor sees it.",
        (
            Cause(
                "The profile has no rule for this path.",
                "`aa-status`; the line's profile and name.",
                "Add `PATH rw,` to /etc/apparmor.d/local/, and `apparmor_parser -r` the profile.",
            ),
            Cause(
                "`Failed name lookup - disconnected path`, and name= without its first /: the socket's path "
                "cannot be reached from the client's mount namespace (PrivateDevices=, ProtectSystem= of the "
                "server's unit).",
                "`info=` in the line.",
                "flags=(attach_disconnected) in the profile.",
            ),
        ),
        pattern=r'apparmor="DENIED" operation="(?:connect|bind|accept|listen|sendmsg|recvmsg|send|recv|mknod|unlink'
        r'|create)"|^apparmor="DENIED"$',
    ),
    Symptom(
        "SELinux: avc: denied { search }, tclass=dir",
        "SELinux forbade to enter a directory, by its label: whatever is below it cannot be reached (EACCES), "
        "a socket as little as a file.",
        (
            Cause(
                "The socket is in a home directory, or another place whose label the client may not use.",
                "`ls -Zd` that directory; `matchpathcon` of it.",
                "Put the socket below /run; for home directories `setsebool -P httpd_enable_homedirs 1`.",
            ),
        ),
        pattern=r"\bavc: +denied .*tclass=dir\b|^SELinux: avc: denied \{ search \}, tclass=dir",
    ),
)
