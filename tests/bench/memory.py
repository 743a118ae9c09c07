#!/usr/bin/env python3
"""What a proxy's memory is: idle, with 1,000 services of ten endpoints, and for each idle client connection.

    memory.py                          # gilmok, haproxy, envoy: all three figures
    memory.py --only gilmok --connections 5000

The big configuration is also put under load, beside the small one on the same machine and in turns, since a
proxy that looks things up by walking a list would show it there: the ratio of CPU time per request is printed.
Needs what compare.py needs.
"""
import argparse, json, os, pathlib, re, resource, shutil, socket, statistics, subprocess, tempfile, time

from compare import GILMOK, HERE, cpu_seconds, render, rss_mib, wait_port

BACKEND = 19100
SERVICES, ENDPOINTS = 1_000, 10


def gilmok(binary, work, name, port, services):
    endpoint = '[[services.{s}.endpoints]]\naddress = "127.0.0.1:{p}"\n'
    text = "[services.backend]\n" + endpoint.format(s="backend", p=BACKEND)
    for n in range(services - 1):
        # Addresses of other machines: nobody calls them here.
        text += f"[services.s{n}]\n" + "".join(f'[[services.s{n}.endpoints]]\naddress = "10.{n % 250}.{n // 250}.{e + 1}:8080"\n' for e in range(ENDPOINTS))
    (work / f"{name}.mesh.toml").write_text(text)
    settings = work / f"{name}.proxy.toml"
    settings.write_text(f'node = "{name}"\n[listen]\noutbound = "127.0.0.1:{port}"\nadmin = "127.0.0.1:{port + 500}"\n'
                        f'[source]\nmesh_file = "{work}/{name}.mesh.toml"\n[state]\ndir = "{work}/state-{name}"\n[workers]\ncount = 1\n[limits]\nconnections = 100000\n')
    return [binary, "--config", str(settings)]


def haproxy(work, name, port, services, connections):
    text = (HERE / "haproxy.cfg").read_text().replace("@PORT@", str(port)).replace("@BACKEND@", str(BACKEND)).replace("maxconn 8192", f"maxconn {connections + 500}")
    if services > 1:
        # A map is looked up in a tree; a list of rules would be walked.
        (work / f"{name}.map").write_text("".join(f"s{n} s{n}\n" for n in range(services - 1)))
        text = text.replace("  default_backend b\n", f"  use_backend %[req.hdr(host),lower,map_str({work}/{name}.map,b)]\n")
    for n in range(services - 1):
        text += f"backend s{n}\n" + "".join(f"  server e{e} 10.{n % 250}.{n // 250}.{e + 1}:8080\n" for e in range(ENDPOINTS))
    path = work / f"{name}.cfg"
    path.write_text(text)
    return ["haproxy", "-f", str(path)]


def envoy(binary, work, name, port, services):
    text = (HERE / "envoy.yaml").read_text().replace("@PORT@", str(port)).replace("@BACKEND@", str(BACKEND))
    hosts = "".join(f'{{name: s{n}, domains: ["s{n}"], routes: [{{match: {{prefix: "/"}}, route: {{cluster: s{n}}}}}]}}, ' for n in range(services - 1))
    text = text.replace('virtual_hosts: [{name: v', 'virtual_hosts: [' + hosts + '{name: v')
    for n in range(services - 1):
        endpoints = ", ".join(f'{{endpoint: {{address: {{socket_address: {{address: 10.{n % 250}.{n // 250}.{e + 1}, port_value: 8080}}}}}}}}' for e in range(ENDPOINTS))
        text += f"  - name: s{n}\n    type: STATIC\n    connect_timeout: 1s\n    load_assignment: {{cluster_name: s{n}, endpoints: [{{lb_endpoints: [{endpoints}]}}]}}\n"
    path = work / f"{name}.yaml"
    path.write_text(text)
    return [binary, "-c", str(path), "--concurrency", "1", "-l", "error", "--disable-hot-restart"]


def crowd(port, count):
    """Opens idle connections, each after one request, so that everything a connection ever allocates is there."""
    request = b"GET / HTTP/1.1\r\nHost: backend\r\n\r\n"
    sockets = []
    for n in range(count):
        # One local address has 28,000 ports; several take more.
        s = socket.create_connection(("127.0.0.1", port), source_address=(f"127.0.0.{2 + n // 20_000}", 0))
        s.sendall(request)
        assert s.recv(4096).startswith(b"HTTP/1.1 200"), "no 200"
        sockets.append(s)
    return sockets


def load(process, port, seconds):
    before = cpu_seconds(process.pid)
    out = subprocess.run(["taskset", "-c", "1", "wrk", "-t1", "-c64", f"-d{seconds}s", "-s", str(HERE / "users.lua"), f"http://127.0.0.1:{port}/"], capture_output=True, text=True).stdout
    return (cpu_seconds(process.pid) - before) / max(int(re.search(r"(\d+) requests in", out)[1]), 1) * 1e6


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--gilmok", default=str(GILMOK))
    ap.add_argument("--envoy", default=shutil.which("envoy"))
    ap.add_argument("--only", default="gilmok,haproxy,envoy")
    ap.add_argument("--connections", type=int, default=10_000)
    ap.add_argument("--seconds", type=int, default=5)
    ap.add_argument("--rounds", type=int, default=5)
    ap.add_argument("--json")
    a = ap.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # Both ends are on this machine, and the proxy may hold as many as this process.
    connections = min(a.connections, hard // 2 - 1_000)  # HAProxy reserves two descriptors for each
    if connections < a.connections:
        print(f"only {connections} connections: `ulimit -n` is {hard}")
    work = pathlib.Path(tempfile.mkdtemp(prefix="gilmok-memory-"))
    work.chmod(0o755)  # the backend's worker is another user
    (work / "www").mkdir()
    makers = {"gilmok": lambda n, p, s: gilmok(a.gilmok, work, n, p, s), "haproxy": lambda n, p, s: haproxy(work, n, p, s, connections), "envoy": lambda n, p, s: envoy(a.envoy, work, n, p, s)}
    there = {"gilmok": os.path.exists(a.gilmok), "haproxy": shutil.which("haproxy"), "envoy": a.envoy}
    names = [n for n in a.only.split(",") if there[n] or print(f"left out: {n} (not found)")]
    running, result = [], {}
    try:
        running.append(subprocess.Popen(["nginx", "-e", "/dev/null", "-c", render("backend.conf", work, BACKEND=BACKEND, WORK=work)], stderr=subprocess.DEVNULL))
        wait_port(BACKEND, running[0], "backend")
        print(f"{'proxy':10}{'idle MiB':>10}{'1,000 services MiB':>20}{'CPU x one service':>19}{'KiB/connection':>16}")
        for index, name in enumerate(names):
            ports = {"one": 18_300 + index * 10, "many": 18_301 + index * 10}
            procs = {}
            for size, services in (("one", 1), ("many", SERVICES)):
                log = open(work / f"{name}-{size}.log", "w")
                procs[size] = subprocess.Popen(["taskset", "-c", "0"] + makers[name](f"{name}-{size}", ports[size], services), stdout=log, stderr=log)
                running.append(procs[size])
                wait_port(ports[size], procs[size], f"{name} with {services} services")
            time.sleep(3)
            idle, many = (rss_mib(procs[size].pid) for size in ("one", "many"))
            for size in procs:
                load(procs[size], ports[size], 1)  # warms up
            ratios = []
            for _ in range(a.rounds):
                one = load(procs["one"], ports["one"], a.seconds)
                ratios.append(load(procs["many"], ports["many"], a.seconds) / one)
            # The load's own connections end before the crowd is measured.
            time.sleep(2)
            before = rss_mib(procs["one"].pid)
            sockets = crowd(ports["one"], connections)
            time.sleep(2)
            each = (rss_mib(procs["one"].pid) - before) * 1024 / connections
            result[name] = dict(idle_mib=idle, many_mib=many, cpu_ratio=statistics.median(ratios), kib_per_connection=each)
            print(f"{name:10}{idle:10.1f}{many:20.1f}{result[name]['cpu_ratio']:19.3f}{each:16.1f}")
            for s in sockets:
                s.close()
            for p in procs.values():
                p.terminate()
        if a.json:
            pathlib.Path(a.json).write_text(json.dumps(result, indent=1))
    finally:
        for p in running:
            p.terminate()
        for p in running:
            try:
                p.wait(15)
            except subprocess.TimeoutExpired:
                p.kill()
        shutil.rmtree(work, ignore_errors=True)


main()
