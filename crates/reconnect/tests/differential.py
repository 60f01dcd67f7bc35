"""Runs reconnect scripts on the machine of the PyPI package `ovs` (module ovs.reconnect).

Reads well-formed scripts of the reconnect script language on standard input
and prints what the language's definition asks for. Where ovs.reconnect and the
definition go apart, the definition holds; each such place is marked with
"differs" below and says how. Exits with status 3 when the package is missing.
"""

import sys

try:
    import ovs.reconnect
    import ovs.vlog
except ImportError as error:
    sys.stderr.write("differential.py: %s\n" % error)
    sys.exit(3)

# Messages cost more time than the machine.
for level in ("emer", "err", "warn", "info", "dbg"):
    setattr(ovs.vlog.Vlog, level, lambda self, message, **kwargs: None)

Fsm = ovs.reconnect.Reconnect


class HalvedExactly(int):
    """A maximum whose half is rounded down.

    differs: ovs.reconnect compares with the exact half, so an odd maximum of
    2k + 1 doubles a backoff of k, where the definition goes to the maximum.
    """

    def __truediv__(self, divisor):
        return self // divisor


class Session(object):
    def __init__(self, now):
        self.now = now
        self.fsm = Fsm(now)
        self.fsm.max_backoff = HalvedExactly(self.fsm.max_backoff)

    def execute(self, words):
        """Returns by how much the clock moved, and the action."""
        name, arguments = words[0], words[1:]
        now, fsm = self.now, self.fsm
        if name == "create":
            self.__init__(int(arguments[0]))
        elif name == "advance":
            self.now += int(arguments[0])
            return self.now - now, None
        elif name == "run":
            if arguments:
                self.now += int(arguments[0])
            return self.now - now, fsm.run(self.now)
        elif name == "timeout":
            self.now += fsm.timeout(now) or 0
            return self.now - now, None
        elif name == "enable":
            fsm.enable(now)
        elif name == "disable":
            fsm.disable(now)
        elif name == "connecting":
            fsm.connecting(now)
        elif name == "connected":
            fsm.connected(now)
        elif name == "connect-failed":
            fsm.connect_failed(now, 0)
        elif name == "disconnected":
            fsm.disconnected(now, 0)
        elif name == "activity":
            # differs: ovs.reconnect enters ACTIVE from every state, the
            # definition from IDLE only.
            if fsm.is_connected():
                fsm.activity(now)
            else:
                fsm.last_activity = now
        elif name == "receive-attempted":
            fsm.receive_attempted(now if arguments[0] == "now" else None)
        elif name == "listening":
            fsm.listening(now)
        elif name == "listen-error":
            fsm.listen_error(now, 0)
        elif name == "force-reconnect":
            fsm.force_reconnect(now)
        elif name in ("reset-backoff", "graceful-reconnect"):
            # What the layer above ovs.reconnect does.
            fsm.set_backoff_free_tries(int(arguments[0]) + fsm.is_connected())
            if name == "graceful-reconnect":
                fsm.force_reconnect(now)
        elif name == "set-backoff-free-tries":
            fsm.set_backoff_free_tries(int(arguments[0]))
        elif name == "set-max-tries":
            fsm.set_max_tries(None if arguments[0] == "unlimited" else int(arguments[0]))
        elif name == "set-backoff":
            # differs: a maximum of 0 is the default in the definition and
            # 1000 in ovs.reconnect.
            fsm.set_backoff(int(arguments[0]), int(arguments[1]) or 8000)
            fsm.max_backoff = HalvedExactly(fsm.max_backoff)
        elif name == "set-probe-interval":
            fsm.set_probe_interval(int(arguments[0]))
        elif name == "set-raft-probe":
            joining = arguments[0] == "joining"
            fsm.set_probe_interval((600000 if joining else int(arguments[0])) + 1000)
        elif name == "passive":
            fsm.set_passive(True, now)
        elif name == "active":
            fsm.set_passive(False, now)
        else:
            sys.exit("differential.py: unknown command %s" % name)
        return 0, None

    def line(self, words, advanced, action):
        fsm, now = self.fsm, self.now
        connected = fsm.is_connected()
        # differs: ovs.reconnect takes a time of 0 for "never", so its own
        # get_stats() is not used.
        since_connect = None if fsm.last_connected is None else now - fsm.last_connected
        since_disconnect = None if fsm.last_disconnected is None else now - fsm.last_disconnected
        members = (
            '"%s"' % " ".join(words),
            now,
            advanced,
            none(action, '"%s"'),
            '"%s"' % fsm.state.name,
            now - fsm.state_entered,
            fsm.backoff,
            none(fsm.timeout(now)),
            truth(connected),
            fsm.seqno,
            fsm.n_attempted_connections,
            fsm.n_successful_connections,
            fsm.total_connected_duration + (since_connect if connected else 0),
            none(since_connect),
            none(since_disconnect),
            fsm.creation_time,
            fsm.last_activity,
            none(fsm.last_connected),
            none(fsm.last_disconnected),
            none(fsm.max_tries),
            fsm.backoff_free_tries,
            truth(fsm.passive),
            fsm.min_backoff,
            fsm.max_backoff,
            fsm.probe_interval,
        )
        return LINE % members


LINE = "{" + ",".join('"%s":%%s' % name for name in (
    "cmd", "now", "advanced_ms", "action", "state", "state_ms", "backoff_ms", "timeout_ms", "is_connected", "seqno",
    "n_attempted", "n_successful", "connected_ms", "since_connect_ms", "since_disconnect_ms", "created",
    "last_activity", "last_connected", "last_disconnected", "max_tries", "free_tries", "passive", "min_backoff_ms",
    "max_backoff_ms", "probe_interval_ms")) + "}\n"


def none(value, form="%d"):
    return "null" if value is None else form % value


def truth(value):
    return "true" if value else "false"


def main():
    session = Session(1000)
    out = [session.line(["create", "1000"], 0, None)]
    for line in sys.stdin:
        words = line.split()
        if words and not words[0].startswith("#"):
            advanced, action = session.execute(words)
            out.append(session.line(words, advanced, action))
        if len(out) >= 1000:
            sys.stdout.write("".join(out))
            out.clear()
    sys.stdout.write("".join(out))


main()
