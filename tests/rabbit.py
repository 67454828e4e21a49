"""A RabbitMQ server of a test's own: on free ports of the loopback, its files in a temporary folder."""

from __future__ import annotations

import itertools
import os
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from urllib.parse import quote

from tests.servers import free_port
from tests.waiting import wait_until

# The scripts themselves: those in /usr/sbin change to the user `rabbitmq`.
SCRIPTS = Path("/usr/lib/rabbitmq/bin")
CERTIFICATE = Path(__file__).parent / "data" / "tls"
COOKIE = "known-to-nobody-but-this-server"
HANDSHAKE = b"AMQP\x00\x00\x09\x01"
_numbers = itertools.count(1)


class RabbitServer:
    """One rabbitmq-server process without plugins, and an epmd of its own that ends with it.

    ``RabbitServer(heartbeat=5, vm_memory_high_watermark=0.5).start()``; the options are those of
    the Erlang application `rabbit`, and a string is taken for an Erlang term.  It uses two cores
    unless `schedulers` is another number, or 0 for all.  `restart` keeps ports and folder.
    """

    def __init__(self, *, schedulers: int = 2, tls: bool = False, **config: object) -> None:
        self.schedulers = schedulers
        self.tls = tls
        self.config = config
        self.node = f"t{os.getpid()}x{next(_numbers)}@localhost"
        self.port = self.tls_port = self._epmd_port = self._distribution_port = 0
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._epmd: subprocess.Popen[bytes] | None = None
        self._output = bytearray()
        self._evaluated = itertools.count(1)

    @staticmethod
    def available() -> bool:
        return (SCRIPTS / "rabbitmq-server").exists() and shutil.which("epmd") is not None

    @property
    def pid(self) -> int:
        return self._running().pid

    @property
    def pids(self) -> set[int]:
        """The server's process and its epmd's: what to end where `stop` cannot be called."""
        return {process.pid for process in (self._process, self._epmd) if process is not None}

    def url(self, vhost: str = "/", user: str = "guest", password: str = "guest") -> str:
        """The server's URL; it ends in // for the virtual host /, as in Celery (pika wants %2F there)."""
        return f"amqp://{_address(user, password, self.port, vhost)}"

    def tls_url(self, vhost: str = "/", user: str = "guest", password: str = "guest") -> str:
        assert self.tls, "the server was made without tls=True"
        return f"amqps://{_address(user, password, self.tls_port, vhost)}"

    def start(self, **config: object) -> RabbitServer:
        """Start it, with `config` in addition; returns when it answers, after two seconds or so."""
        assert self._process is None, "the server is running already"
        self.config |= config
        if self._folder is None:
            self._folder = _new_folder()
        if self.port:
            self._launch()
            return self
        for _ in range(3):  # another process may take a free port before the server does
            self.port, self.tls_port = free_port(), free_port()
            self._epmd_port, self._distribution_port = free_port(), free_port()
            try:
                self._launch()
                return self
            except RuntimeError as failed:
                error = failed
        self.stop()
        self.port = 0
        raise error

    def stop(self) -> None:
        """End it and remove its folder; what it kept is gone."""
        self._end(signal.SIGKILL)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def kill(self) -> None:
        """End it by SIGKILL, as a crash would; its files stay for `restart`."""
        self._end(signal.SIGKILL)

    def restart(self) -> RabbitServer:
        """Start it again on the same ports and folder; shuts it down in order first where it runs."""
        self._end(signal.SIGTERM)
        return self.start()

    def ctl(self, *arguments: str, timeout: float = 30.0) -> str:
        """What `rabbitmqctl ARGUMENTS` prints; takes half a second, see `eval`."""
        done = subprocess.run(
            [str(SCRIPTS / "rabbitmqctl"), "--quiet", "--node", self.node, *arguments],
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if done.returncode:
            raise RuntimeError(f"rabbitmqctl {arguments[0]} failed:\n{done.stdout}{done.stderr}")
        return done.stdout

    def eval(self, expression: str, timeout: float = 30.0) -> str:
        """The value of an Erlang expression in the server, as Erlang writes it; takes a millisecond.

        Where the expression fails, the value is a tuple that begins with error, exit or throw.
        """
        shell = self._running().stdin
        assert shell is not None
        number = next(self._evaluated)
        caught = f"fun() -> try {expression} catch Class:Reason -> {{Class, Reason}} end end"
        shell.write(
            f'io:format("<value ~w>~0p</value>~n", [{number}, ({caught})()]).\n'
            # Printed also where the first line could not be parsed.
            f'io:format("<end ~w>~n", [{number}]).\n'.encode()
        )
        shell.flush()
        printed = self._printed_until(f"<end {number}>", timeout)
        value, closed, _ = printed.partition(f"<value {number}>")[2].rpartition("</value>")
        if not closed:
            raise RuntimeError(f"{expression!r} was not evaluated:\n{printed}")
        return value

    def add_vhost(self, name: str, user: str = "guest") -> None:
        """Make a virtual host in which `user` may do everything; takes 15 ms."""
        self._do(f"rabbit_vhost:add({_binary(name)}, {_binary('test')})")
        everything = ", ".join([_binary(".*")] * 3)
        self._do(
            "rabbit_auth_backend_internal:set_permissions("
            f"{_binary(user)}, {_binary(name)}, {everything}, {_binary('test')})"
        )

    def delete_vhost(self, name: str) -> None:
        """Remove a virtual host with its queues, and close the connections to it."""
        self._do(f"rabbit_vhost:delete({_binary(name)}, {_binary('test')})")

    def add_user(self, name: str, password: str) -> None:
        """Make a user, who may not use any virtual host yet."""
        self._do(
            f"rabbit_auth_backend_internal:add_user({_binary(name)}, {_binary(password)}, {_binary('test')})"
        )

    def count(self, vhost: str, queue: str, what: str = "messages") -> int:
        """A number that it has of a queue: messages, messages_ready, messages_unacknowledged."""
        name = f"rabbit_misc:r({_binary(vhost)}, queue, {_binary(queue)})"
        found = self.eval(f"rabbit_amqqueue:info(element(2, rabbit_amqqueue:lookup({name})), [{what}])")
        return int(found.strip("[{}]").split(",")[1])

    def close_connections(self) -> None:
        """Close every client's connection as an operator would: with reply code 320, CONNECTION_FORCED."""
        self._do('rabbit_networking:close_all_connections("closed by the test")')

    def raise_memory_alarm(self) -> None:
        """Let the server take nothing from publishers: it sends connection.blocked, then stops reading."""
        self._do("vm_memory_monitor:set_vm_memory_high_watermark(0.000001)")
        # Its connections are told before who asks: what a client sends from now on finds them so.
        wait_until(lambda: self.eval("rabbit_alarm:get_alarms()") != "[]")

    def clear_memory_alarm(self) -> None:
        self._do("vm_memory_monitor:set_vm_memory_high_watermark(0.4)")
        wait_until(lambda: self.eval("rabbit_alarm:get_alarms()") == "[]")

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "the server is not running"
        return self._process

    def _do(self, expression: str) -> None:
        value = self.eval(expression)
        function = expression.partition("(")[0]
        assert value in {"ok", "{ok,ok}"}, f"{function} in {self.node}: {value}"

    def _launch(self) -> None:
        assert self._folder is not None
        (self._folder / "rabbitmq.config").write_text(self._written_config())
        self._output.clear()
        self._epmd = subprocess.Popen(
            ["epmd", "-address", "127.0.0.1", "-port", str(self._epmd_port)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        # The server starts a daemon of its own where it finds none.
        wait_until(self._epmd_listens, 30)
        self._process = subprocess.Popen(
            [str(SCRIPTS / "rabbitmq-server")],
            env=self._environment(),
            cwd=self._folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # an interrupt from the terminal is not for the server
        )
        end = time.monotonic() + 60
        while time.monotonic() < end and self._process.poll() is None:
            if self._answers() and self._epmd.poll() is None:
                return
            self._read_output(0.02)
        output = self._output.decode(errors="replace")
        self._end(signal.SIGKILL)
        raise RuntimeError(f"rabbitmq-server did not start:\n{output[-4000:]}")

    def _environment(self) -> dict[str, str]:
        folder = self._folder
        loopback = "-kernel inet_dist_use_interface {127,0,0,1}"
        cores = f"+S {self.schedulers}:{self.schedulers}" if self.schedulers else ""
        # The folder with every module comes first, else each of 900 is looked for in 90 folders: 2 s
        # to start, not 6.  The server finds its own folder by where it found the modules of `rabbit`.
        modules = f"-pa {folder}/modules {folder}/plugins/rabbit/ebin"
        return {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "HOME": str(folder),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_INETRC": f"{folder}/inetrc",
            "RABBITMQ_NODENAME": self.node,
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_CTL_DIST_PORT_MIN": "0",
            "RABBITMQ_CTL_DIST_PORT_MAX": "0",
            "RABBITMQ_CTL_ERL_ARGS": loopback,
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"{loopback} {cores} {modules}",
            # With input allowed the script becomes the server, and the server evaluates what it reads
            # from stdin and ends with it: also where this process is killed.
            "RABBITMQ_ALLOW_INPUT": "yes",
            "RABBITMQ_CONF_ENV_FILE": f"{folder}/no-environment",
            "RABBITMQ_CONFIG_FILE": f"{folder}/rabbitmq.config",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/enabled_plugins",
            "RABBITMQ_PLUGINS_DIR": f"{folder}/plugins",
            "RABBITMQ_MNESIA_BASE": f"{folder}/mnesia",
            "RABBITMQ_LOG_BASE": f"{folder}/log",
        }

    def _written_config(self) -> str:
        config: dict[str, object] = {
            "tcp_listeners": f'[{{"127.0.0.1", {self.port}}}]',
            "disk_free_limit": 1_000_000,
            "log": "[{file, [{level, warning}]}]",
        }
        if self.tls:
            config["ssl_listeners"] = f'[{{"127.0.0.1", {self.tls_port}}}]'
            files = f'{{certfile, "{CERTIFICATE}/cert.pem"}}, {{keyfile, "{CERTIFICATE}/key.pem"}}'
            config["ssl_options"] = f"[{files}]"
        options = ", ".join(f"{{{name}, {_term(value)}}}" for name, value in (config | self.config).items())
        return f"[{{rabbit, [{options}]}}].\n"

    def _epmd_listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._epmd_port)) == 0

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=2) as connection:
                connection.sendall(HANDSHAKE)
                # Connection.Start names the cluster, by default after the node: a stranger has another.
                return self.node.partition("@")[0].encode() + b"@" in connection.recv(4096)
        except OSError:
            return False

    def _printed_until(self, mark: str, timeout: float) -> str:
        end = time.monotonic() + timeout
        while mark.encode() not in self._output:
            if time.monotonic() > end or not self._read_output(0.1):
                printed = self._output.decode(errors="replace")
                raise RuntimeError(f"the server did not answer within {timeout} s:\n{printed[-4000:]}")
        printed = self._output.decode(errors="replace").partition(mark)[0]
        self._output.clear()
        return printed

    def _read_output(self, timeout: float) -> bool:
        """Take what the server prints within `timeout` seconds; False where it has ended."""
        stdout = self._running().stdout
        assert stdout is not None
        if not select.select([stdout], [], [], timeout)[0]:
            return True
        printed = os.read(stdout.fileno(), 65536)
        self._output += printed
        return bool(printed)

    def _end(self, number: signal.Signals) -> None:
        server, epmd = self._process, self._epmd
        self._process = self._epmd = None
        if server is not None:
            _end_process(server, number)
        if epmd is not None:
            _end_process(epmd, signal.SIGKILL)


def _end_process(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    process.send_signal(number)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _new_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="rabbit-"))
    (folder / ".erlang.cookie").write_text(COOKIE)
    (folder / ".erlang.cookie").chmod(0o400)
    (folder / "enabled_plugins").write_text("[].\n")
    # Without this, a process of its own looks names up, and asks a name server.
    (folder / "inetrc").write_text('{host, {127,0,0,1}, ["localhost"]}.\n{lookup, [file]}.\n')
    for empty in ("modules", "plugins"):
        (folder / empty).mkdir()
    own_plugins = (SCRIPTS / "rabbitmq-server").resolve().parents[1] / "plugins"
    erlang = Path(shutil.which("erl") or "/usr/bin/erl").resolve().parents[1]
    for ebin in (*own_plugins.glob("*/ebin"), *erlang.glob("lib/*/ebin")):
        if ebin.parent.name.partition("-")[0] == "rabbit":
            (folder / "plugins" / "rabbit").symlink_to(ebin.parent)
            continue
        for module in ebin.glob("*.beam"):
            (folder / "modules" / module.name).symlink_to(module)
    return folder


def _address(user: str, password: str, port: int, vhost: str) -> str:
    # The default virtual host is written as Celery does: //.
    path = "/" if vhost == "/" else quote(vhost, safe="")
    return f"{quote(user, safe='')}:{quote(password, safe='')}@127.0.0.1:{port}/{path}"


def _binary(text: str) -> str:
    return f"<<{','.join(map(str, text.encode()))}>>"


def _term(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
