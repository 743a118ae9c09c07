#!/usr/bin/env python3
"""What a split costs: CPU time per request of one proxy, plain and with its service split between two versions.

As fail_fast.py measures, with a new subject in each request, so that each is hashed, placed and noted as a trial.

    split.py [--gilmok PATH] [--rounds 5] [--seconds 4] [--connections 64]

plain: one version and nothing else; named: the same, and the endpoint says its version; canary: 1 % of the subjects on v2;
half: half of them. Both versions are one backend.
Needs: wrk and nginx (Debian packages).
"""
from compare import BACKEND
from fail_fast import measure

NAMED = 'version = "v1"\n'
CANARY = (NAMED + f'[[services.backend.endpoints]]\naddress = "localhost:{BACKEND}"\nversion = "v2"\n'
          '[services.backend.traffic]\nstable = "v1"\nweights = { v1 = 99, v2 = 1 }\n')
KINDS = {"plain": "", "named": NAMED, "canary": CANARY, "half": CANARY.replace("99", "50").replace("v2 = 1 ", "v2 = 50 ")}

if __name__ == "__main__":
    measure(__doc__, KINDS)
