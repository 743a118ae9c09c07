#!/usr/bin/env python3
"""What TLS costs: CPU time per request over warm connections and per handshake, beside HAProxy, nginx and Envoy.

As compare.py measures and with its configurations, to which the listener's TLS is added and nothing else: one worker each on
CPU 0, everything else on CPU 1, rounds in turns. All show the same certificate (ECDSA P-256) and call the backend in the clear.

    tls.py [--gilmok PATH] [--aws-lc PATH] [--envoy PATH] [--only gilmok,haproxy] [--rounds 5] [--seconds 4] [--connections 64]

tls: wrk over TLS, at the edge listener; mutual: the same requests from a sidecar, which shows its certificate and checks the
other's, at an inbound listener that takes nobody without one; tls handshakes, mutual handshakes: connections with a whole
handshake and one request each, one after the other in four clients, and how many of them a core could take in a second: a
client that closes without a request would often be gone before the server has looked at its certificate. --aws-lc is a second
build of gilmok-proxy, with that feature.
Needs: wrk, haproxy, nginx, openssl (Debian packages), Envoy as compare.py does. What is missing is left out, and said so.
"""
import argparse, multiprocessing, os, pathlib, re, shutil, socket, ssl, statistics, subprocess, sys, tempfile, time

from compare import BACKEND, GILMOK, HERE, PORT, cpu_seconds, render, wait_port

PORTS = dict(PORT, **{"gilmok-aws-lc": 18086})
CLIENTS = 4  # that make handshakes at once
FILES = dict(cert="server.pem", key="server.key", both="server.both", ca="ca.pem")


def certificates(work):
    """One root, the service `backend` and its caller, as docs/moving-in.md has them."""
    openssl = lambda *args: subprocess.run(["openssl", *args], cwd=work, check=True, capture_output=True)
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=bench")
    for name, service, names in (("server", "backend", ",DNS:localhost,IP:127.0.0.1"), ("client", "caller", "")):
        (work / "ext").write_text(f"subjectAltName=URI:spiffe://bench/service/{service}{names}\nextendedKeyUsage=serverAuth,clientAuth\n")
        openssl("req", "-new", *key, "-keyout", f"{name}.key", "-out", "csr", "-subj", f"/CN={name}")
        openssl("x509", "-req", "-in", "csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "1", "-extfile", "ext", "-out", f"{name}.pem")
    (work / "server.both").write_text((work / "server.pem").read_text() + (work / "server.key").read_text())


def with_tls(name, work, mutual):
    """compare.py's configuration of a peer with TLS at its listener."""
    file = {name: str(work / path) for name, path in FILES.items()}
    old, new = {
        "haproxy": ("bind 127.0.0.1:@PORT@", "bind 127.0.0.1:@PORT@ ssl crt {both} alpn http/1.1" + (" ca-file {ca} verify required" if mutual else "")),
        "nginx": ("backlog=4096;", "ssl backlog=4096; ssl_protocols TLSv1.3; ssl_certificate {cert}; ssl_certificate_key {key};"
                  + (" ssl_client_certificate {ca}; ssl_verify_client on;" if mutual else "")),
        "envoy": ("    - filters:", "    - transport_socket: {{name: envoy.transport_sockets.tls, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext,"
                  + (" require_client_certificate: true," if mutual else "")
                  + " common_tls_context: {{tls_params: {{tls_maximum_protocol_version: TLSv1_3}}, alpn_protocols: [http/1.1],"
                  + (" validation_context: {{trusted_ca: {{filename: {ca}}}}}," if mutual else "")
                  + " tls_certificates: [{{certificate_chain: {{filename: {cert}}}, private_key: {{filename: {key}}}}}]}}}}}}\n      filters:"),
    }[name]
    source = {"haproxy": "haproxy.cfg", "nginx": "nginx.conf", "envoy": "envoy.yaml"}[name]
    text = pathlib.Path(render(source, work, PORT=PORTS[name], BACKEND=BACKEND, WORK=work)).read_text()
    old = old.replace("@PORT@", str(PORTS[name]))
    if old not in text:
        sys.exit(f"{source} has no {old!r}")
    path = work / f"{'mutual' if mutual else 'tls'}-{source}"
    path.write_text(text.replace(old, new.replace("@PORT@", str(PORTS[name])).format(**file), 1))
    return str(path)


def gilmok(program, name, work, mutual):
    """A proxy that receives over TLS."""
    folder = work / f"{name}-{'mutual' if mutual else 'tls'}"
    folder.mkdir()
    tables = f'[state]\ndir = "{folder}/state"\n[workers]\ncount = 1\n[source]\nmesh_file = "{folder}/mesh.toml"\n'
    listen = f'[listen]\noutbound = "127.0.0.1:0"\nadmin = "127.0.0.1:0"\n'
    if mutual:
        (folder / "mesh.toml").write_text('[services.backend]\nallow = ["caller"]\n[services.caller]\n')
        listen += 'inbound_tls = "strict"\n'
        tables += (f'[identity]\ncert_file = "{work}/server.pem"\nkey_file = "{work}/server.key"\nca_file = "{work}/ca.pem"\n'
                   f'[[apps]]\nservice = "backend"\naddress = "127.0.0.1:{BACKEND}"\ninbound = "127.0.0.1:{PORTS[name]}"\n')
    else:
        (folder / "mesh.toml").write_text(f'[[services.backend.endpoints]]\naddress = "127.0.0.1:{BACKEND}"\n[[routes]]\nhosts = ["backend"]\nservice = "backend"\n')
        listen += f'edge = "127.0.0.1:{PORTS[name]}"\n'
        tables += f'[[edge.certificates]]\ncert_file = "{work}/server.pem"\nkey_file = "{work}/server.key"\n'
    (folder / "proxy.toml").write_text('node = "bench"\n' + listen + tables)
    return [os.path.abspath(program), "--config", str(folder / "proxy.toml")]


def sidecar(program, name, work):
    """The caller of a server under test: what it is asked in the clear it asks over mutual TLS."""
    folder = work / f"{name}-caller"
    folder.mkdir()
    (folder / "mesh.toml").write_text(f'[[services.backend.endpoints]]\naddress = "127.0.0.1:{PORTS[name]}"\ninbound = true\nmtls = true\n')
    (folder / "proxy.toml").write_text(
        f'node = "caller"\n[listen]\noutbound = "127.0.0.1:{PORTS[name] + 1000}"\nadmin = "127.0.0.1:0"\n[source]\nmesh_file = "{folder}/mesh.toml"\n'
        f'[state]\ndir = "{folder}/state"\n[workers]\ncount = 1\n'
        f'[identity]\ncert_file = "{work}/client.pem"\nkey_file = "{work}/client.key"\nca_file = "{work}/ca.pem"\n')
    return [os.path.abspath(program), "--config", str(folder / "proxy.toml")]


def requests(url, seconds, connections):
    """How many were answered well."""
    out = subprocess.run(["taskset", "-c", "1", "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(HERE / "users.lua"), url],
                         capture_output=True, text=True).stdout
    if re.search("Non-2xx|Socket errors", out):
        print(f"{url}: {out}")
    return int(re.search(r"(\d+) requests in", out)[1])


def client(port, seconds, work, mutual):
    """Connects, asks and leaves again and again; how often."""
    context = ssl.create_default_context(cafile=work / "ca.pem")
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if mutual:
        context.load_cert_chain(work / "client.pem", work / "client.key")
    count, until = 0, time.monotonic() + seconds
    while time.monotonic() < until:
        with context.wrap_socket(socket.create_connection(("127.0.0.1", port)), server_hostname="localhost") as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: backend\r\nConnection: close\r\n\r\n")
            answer = b""
            while part := connection.recv(65536):
                answer += part
        if not answer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"port {port} answered {answer[:200]}")
        count += 1
    return count


def handshakes(port, seconds, work, mutual):
    """How many were made."""
    with multiprocessing.Pool(CLIENTS, os.sched_setaffinity, (0, {1})) as pool:
        return sum(pool.starmap(client, [(port, seconds, work, mutual)] * CLIENTS))


def measure(a, work, mutual, programs):
    """Starts what is under test, and times requests and handshakes."""
    running, servers = [], {}
    try:
        for name, program in programs.items():
            if name.startswith("gilmok"):
                command = gilmok(program, name, work, mutual)
            else:
                config = with_tls(name, work, mutual)
                command = {"haproxy": [program, "-f", config], "nginx": [program, "-e", "/dev/null", "-c", config],
                           "envoy": [program, "-c", config, "--concurrency", "1", "-l", "error", "--disable-hot-restart"]}[name]
            log = open(work / f"{name}.log", "w")
            servers[name] = subprocess.Popen(["taskset", "-c", "0"] + command, stdout=log, stderr=log)
            running.append(servers[name])
            wait_port(PORTS[name], servers[name], name)
            if mutual:
                running.append(subprocess.Popen(["taskset", "-c", "1"] + sidecar(a.gilmok, name, work), stdout=log, stderr=log))
                wait_port(PORTS[name] + 1000, running[-1], f"{name}'s caller")
        url = lambda name: f"http://127.0.0.1:{PORTS[name] + 1000}/" if mutual else f"https://127.0.0.1:{PORTS[name]}/"
        kind = "mutual" if mutual else "tls"
        works = {kind: lambda name, seconds: requests(url(name), seconds, a.connections),
                 f"{kind} handshakes": lambda name, seconds: handshakes(PORTS[name], seconds, work, mutual)}
        for what, do in works.items():
            rows = {name: [] for name in servers}
            for n in range(a.rounds + 1):
                # Each begins a round in its turn; the first round warms up.
                names = list(servers)
                for name in names[n % len(names):] + names[:n % len(names)]:
                    before = cpu_seconds(servers[name].pid)
                    count = do(name, a.seconds if n else 1)
                    if n:
                        rows[name].append((cpu_seconds(servers[name].pid) - before) / max(count, 1) * 1e6)
            print(f"\n{what:18}{'CPU us':>10}{'x HAProxy':>11}{'x nginx':>9}{'x Envoy':>9}" + ("  a second of a core" if what != kind else ""))
            for name, told in rows.items():
                us = statistics.median(told)
                ratio = lambda peer: statistics.median(mine / its for mine, its in zip(told, rows[peer])) if peer in rows else float("nan")
                print(f"{name:18}{us:10.1f}{ratio('haproxy'):11.2f}{ratio('nginx'):9.2f}{ratio('envoy'):9.2f}" + (f"{1e6 / max(us, 1e-9):20.0f}" if what != kind else ""))
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--gilmok", default=str(GILMOK) if GILMOK.exists() else None, help="the gilmok-proxy executable")
    ap.add_argument("--aws-lc", help="another one, built with --features aws-lc")
    ap.add_argument("--envoy", default=shutil.which("envoy"))
    ap.add_argument("--only", help="comma-separated names")
    ap.add_argument("--connections", type=int, default=64)
    ap.add_argument("--seconds", type=int, default=4)
    ap.add_argument("--rounds", type=int, default=5)
    a = ap.parse_args()
    if not a.gilmok:
        sys.exit("no gilmok-proxy: cargo build --release, or --gilmok PATH")
    programs = {"gilmok": a.gilmok, "gilmok-aws-lc": a.aws_lc, "haproxy": shutil.which("haproxy"), "nginx": shutil.which("nginx"), "envoy": a.envoy}
    wanted = a.only.split(",") if a.only else programs
    programs = {name: programs[name] for name in wanted if programs[name] or print(f"left out: {name} (not found)")}
    work = pathlib.Path(tempfile.mkdtemp(prefix="gilmok-bench-"))
    work.chmod(0o755)  # the backend's worker is another user
    (work / "www").mkdir()
    certificates(work)
    backend = subprocess.Popen(["nginx", "-e", "/dev/null", "-c", render("backend.conf", work, BACKEND=BACKEND, WORK=work)], stderr=subprocess.DEVNULL)
    try:
        wait_port(BACKEND, backend, "backend")
        for mutual in (False, True):
            measure(a, work, mutual, programs)
    finally:
        backend.terminate()
        backend.wait()
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
