#!/usr/bin/env python3
"""What failing fast costs: CPU time per request of one proxy, plain, guarded, and refusing.

One proxy at a time on CPU 0, the load generator (wrk) and the backend (nginx) on CPU 1, in turns, so that a slow minute of
the machine hits all alike. Told as in compare.py; the ratio is to the plain proxy in the same round.

    fail_fast.py [--gilmok PATH] [--rounds 5] [--seconds 4] [--connections 64]

plain: an endpoint and nothing else; guarded: with breaker, ejection, retries and a prepared answer; last_good: and with
the last good answer kept; refused: the breaker is forced open; fallback: the same with a prepared answer.
Needs: wrk and nginx (Debian packages).
"""
import argparse, os, pathlib, re, shutil, statistics, subprocess, sys, tempfile

from compare import BACKEND, GILMOK, HERE, PORT, cpu_seconds, render, wait_port

RESPOND = '[[services.backend.fallback]]\nrespond = { body = "house" }\n'
GUARDED = ('[services.backend.circuit_breaker]\nslow_call = "1s"\n[services.backend.outlier_detection]\n'
           '[services.backend.retry]\nattempts = 2\non = ["connect", "refused", "reset", "503"]\n')
OPEN = '[[services.backend.forced_breakers]]\nstate = "open"\n'
KINDS = {"plain": "", "guarded": GUARDED + RESPOND, "last_good": GUARDED + "[[services.backend.fallback]]\nlast_good = {}\n" + RESPOND,
         "refused": OPEN, "fallback": OPEN + RESPOND}


def measure(description, kinds_of_service):
    """Times each kind, a text of tables behind the endpoint of the service `backend`, beside `plain`, and prints them."""
    ap = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--gilmok", default=str(GILMOK) if GILMOK.exists() else None, help="the gilmok-proxy executable")
    ap.add_argument("--connections", type=int, default=64)
    ap.add_argument("--seconds", type=int, default=4)
    ap.add_argument("--rounds", type=int, default=5)
    a = ap.parse_args()
    if not a.gilmok:
        sys.exit("no gilmok-proxy: cargo build --release, or --gilmok PATH")
    work = pathlib.Path(tempfile.mkdtemp(prefix="gilmok-bench-"))
    work.chmod(0o755)  # the backend's worker is another user
    (work / "www").mkdir()
    endpoint = f'[[services.backend.endpoints]]\naddress = "127.0.0.1:{BACKEND}"\n'
    rows, running = {kind: [] for kind in kinds_of_service}, []
    try:
        backend = subprocess.Popen(["nginx", "-e", "/dev/null", "-c", render("backend.conf", work, BACKEND=BACKEND, WORK=work)], stderr=subprocess.DEVNULL)
        running.append(backend)
        wait_port(BACKEND, backend, "backend")
        for n in range(a.rounds):
            # Each begins a round in its turn.
            kinds = list(kinds_of_service.items())
            for kind, tables in kinds[n % len(kinds):] + kinds[:n % len(kinds)]:
                (work / "mesh.toml").write_text(endpoint + tables)
                (work / "proxy.toml").write_text(
                    f'[listen]\noutbound = "127.0.0.1:{PORT["gilmok"]}"\nadmin = "127.0.0.1:0"\n[source]\nmesh_file = "{work}/mesh.toml"\n'
                    f'[state]\ndir = "{work}/state"\n[workers]\ncount = 1\n')
                proxy = subprocess.Popen(["taskset", "-c", "0", os.path.abspath(a.gilmok), "--config", str(work / "proxy.toml")], stderr=subprocess.DEVNULL)
                running.append(proxy)
                wait_port(PORT["gilmok"], proxy, kind)
                run = lambda seconds, connections: subprocess.run(
                    ["taskset", "-c", "1", "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", str(HERE / "users.lua"),
                     f"http://127.0.0.1:{PORT['gilmok']}/"], capture_output=True, text=True).stdout
                run(1, a.connections)
                before = cpu_seconds(proxy.pid)
                out = run(a.seconds, a.connections)
                spent = cpu_seconds(proxy.pid) - before
                # Latency without a queue in front: a few callers.
                few = re.search(r"^\s+99%\s+([\d.]+)(us|ms|s)", run(2, 4), re.M)
                scale = {"us": 0.001, "ms": 1, "s": 1000}[few[2]]
                rows[kind].append((spent / int(re.search(r"(\d+) requests in", out)[1]) * 1e6, float(few[1]) * scale, spent / a.seconds))
                proxy.terminate()
                proxy.wait()
                running.remove(proxy)
        # A proxy that is not busy all the time wakes up more often, and for less at a time: each request costs it more.
        print(f"{'':10}{'CPU us/request':>15}{'x plain':>9}{'p99 ms, 4 callers':>19}{'busy':>7}")
        for kind, told in rows.items():
            ratio = statistics.median(us / plain for (us, *_), (plain, *_) in zip(told, rows["plain"]))
            us, p99, busy = (statistics.median(column) for column in zip(*told))
            print(f"{kind:10}{us:15.2f}{ratio:9.3f}{p99:19.3f}{busy:7.0%}")
    finally:
        for process in running:
            process.terminate()
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    measure(__doc__, KINDS)
