#!/usr/bin/env python3
"""What a clustered ovsdb-server's leader holds in memory while one follower is stopped, under the load that
`pontoon-torture memory --rate R` gives to Pontoon and etcd. Needs ovsdb-server and ovsdb-tool; nothing of the system is touched.

    ./ovsdb.py --rate 300 --seconds 60
"""
import argparse, json, os, signal, socket, subprocess, tempfile, threading, time

SCHEMA = {"name": "bench", "version": "1.0.0", "tables": {"kv": {
    "columns": {"key": {"type": "string"}, "value": {"type": "string"}},
    "indexes": [["key"]], "isRoot": True}}}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Client:
    """One JSON-RPC connection, one call at a time."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(30)
        self.socket.connect(path)
        self.buffer, self.number = "", 0

    def call(self, method, params):
        self.number += 1
        self.socket.sendall(json.dumps({"id": self.number, "method": method, "params": params}).encode())
        while True:
            message = self.read()
            if message.get("method") == "echo":
                self.socket.sendall(json.dumps({"id": message["id"], "result": message["params"], "error": None}).encode())
            elif message.get("id") == self.number:
                if message["error"]:
                    raise RuntimeError(message["error"])
                return message["result"]

    def read(self):
        while True:
            if self.buffer:
                try:
                    message, end = json.JSONDecoder().raw_decode(self.buffer)
                    self.buffer = self.buffer[end:].lstrip()
                    return message
                except ValueError:
                    pass
            data = self.socket.recv(1 << 20)
            if not data:
                raise EOFError("the server closed the connection")
            self.buffer += data.decode()


def anonymous_mib(pid):
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon:")) / 1024


def role(path):
    rows = Client(path).call("transact", ["_Server", {"op": "select", "table": "Database",
                             "where": [["name", "==", "bench"]], "columns": ["leader", "connected"]}])[0]["rows"]
    return rows[0] if rows else {"leader": False, "connected": False}


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--rate", type=float, default=300)
    p.add_argument("--seconds", type=int, default=60)
    p.add_argument("--warm-up", type=int, default=10)
    p.add_argument("--clients", type=int, default=16)
    p.add_argument("--keys", type=int, default=1000)
    p.add_argument("--value-size", type=int, default=4096)
    a = p.parse_args()
    with tempfile.TemporaryDirectory(prefix="ovsdb-bench-") as d:
        servers = []
        try:
            run(a, d, servers)
        finally:
            for server in servers:
                server.send_signal(signal.SIGCONT)
                server.kill()
                server.wait()


def run(a, d, servers):
    with open(f"{d}/schema", "w") as f:
        json.dump(SCHEMA, f)
    peers = [f"tcp:127.0.0.1:{free_port()}" for _ in range(3)]
    sockets = [f"{d}/{n}.sock" for n in range(3)]
    for n in range(3):
        db = f"{d}/{n}.db"
        make = ["create-cluster", db, f"{d}/schema", peers[0]] if n == 0 else ["join-cluster", db, "bench", peers[n], peers[0]]
        subprocess.run(["ovsdb-tool", *make], check=True)
        servers.append(subprocess.Popen(
            ["ovsdb-server", "--no-chdir", f"--remote=punix:{sockets[n]}", f"--unixctl={d}/{n}.ctl",
             f"--log-file={d}/{n}.log", "-vconsole:off", db],
            stderr=subprocess.DEVNULL, env={**os.environ, "OVS_RUNDIR": d}))
        until = time.time() + 30
        while True:
            try:
                if role(sockets[n])["connected"]:
                    break
            except (OSError, IndexError, KeyError):
                pass
            if time.time() > until:
                raise SystemExit(f"server {n} does not start: {open(f'{d}/{n}.log').read()[-2000:]}")
            time.sleep(0.1)
    leader = next(n for n in range(3) if role(sockets[n])["leader"])
    stopped = (leader + 1) % 3
    first = Client(sockets[leader])
    for key in range(a.keys):
        first.call("transact", ["bench", {"op": "insert", "table": "kv", "row": {"key": f"m/{key:06}", "value": ""}}])
    done, end, errors = [0] * a.clients, threading.Event(), []

    def load(n):
        client, number, value = Client(sockets[leader]), n, "x" * a.value_size
        due = time.time()
        while not end.is_set():
            due += a.clients / a.rate
            time.sleep(max(0, due - time.time()))
            number = (number + a.clients) % a.keys
            try:
                client.call("transact", ["bench", {"op": "update", "table": "kv", "where": [["key", "==", f"m/{number:06}"]],
                                                   "row": {"value": value[:-20] + f"{time.time():020.6f}"}}])
            except (OSError, RuntimeError, EOFError) as e:
                errors.append(e)
                return
            done[n] += 1

    threads = [threading.Thread(target=load, args=(n,), daemon=True) for n in range(a.clients)]
    for thread in threads:
        thread.start()
    pid = servers[leader].pid

    def watch(what):
        begin, at_first, before = time.time(), anonymous_mib(pid), sum(done)
        most = at_first
        while time.time() - begin < a.seconds:
            time.sleep(1)
            most = max(most, anonymous_mib(pid))
        rate = (sum(done) - before) / (time.time() - begin)
        print(f"{what}: {rate:.0f} updates/s, RssAnon {at_first:.1f} MiB at first, {most:.1f} at most, {anonymous_mib(pid):.1f} now", flush=True)
        return most - at_first

    time.sleep(a.warm_up)
    control = watch("all well")
    servers[stopped].send_signal(signal.SIGSTOP)
    growth = watch("one stopped")
    end.set()
    if errors:
        raise SystemExit(f"a client failed: {errors[0]!r}")
    if not role(sockets[leader])["leader"]:
        raise SystemExit("the leader changed, so the figures are about a follower")
    print(f"the leader's RssAnon grew by {control:.1f} MiB with all well, and by {growth:.1f} MiB with one stopped")


main()
