#!/usr/bin/env python3
"""What mirroring costs, and whom: CPU time per request of one proxy, and the 99th percentile that its callers see.

As fail_fast.py measures. A copy is one more request of the proxy's, so that its CPU time is what it is; what must not move is
the latency of four callers, whatever becomes of the copies.

    mirror.py [--gilmok PATH] [--rounds 5] [--seconds 4] [--connections 64]

plain: one version and nothing else; off: two versions, all requests for v1 and no copies; some, all: 5 % and 100 % copied to
v2, which is the same backend; dead: 100 % to a port where nobody listens; hangs: 100 % to one that takes connections and
never answers.
Needs: wrk and nginx (Debian packages).
"""
import socket

from compare import BACKEND
from fail_fast import measure

# The kernel takes the connections: nobody accepts them.
silent = socket.create_server(("127.0.0.1", 0), backlog=4096)
HANGS, DEAD = silent.getsockname()[1], 1


def service(port, mirror=""):
    return (f'version = "v1"\n[[services.backend.endpoints]]\naddress = "127.0.0.1:{port}"\nversion = "v2"\n'
            f'[services.backend.traffic]\nstable = "v1"\nweights = {{ v1 = 100, v2 = 0 }}\n{mirror}\n')


def copies(percent):
    return f'mirror = {{ version = "v2", percent = {percent} }}'


KINDS = {"plain": "", "off": service(BACKEND), "some": service(BACKEND, copies(5)), "all": service(BACKEND, copies(100)),
         "dead": service(DEAD, copies(100)), "hangs": service(HANGS, copies(100))}

if __name__ == "__main__":
    measure(__doc__, KINDS)
