"""`python -m benchmarks`: one interleaved run of all peers on one server."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.goals import goals_text
from benchmarks.machine import load_average, machine_facts
from benchmarks.peers import PEERS, Peer
from benchmarks.processes import BenchError
from benchmarks.rabbit import RabbitMQServer
from benchmarks.report import Report
from benchmarks.rows import MOST_ROUNDS, SESSIONS, Row, choose_rows, table_rows
from benchmarks.server import RedisServer
from benchmarks.sessions import QUICK, Sizes
from benchmarks.turn import Servers, open_turn
from benchmarks.venvs import ROOT, Environments, versions


def main() -> int:
    """Run, print the Markdown reports, write the JSON; 1 where anything could not be measured."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that every worker is ended
    options = _parse_options()
    brokers = list(PEERS) if options.broker == "all" else [options.broker]
    try:
        reports = [_new_report(broker, options) for broker in brokers]
    except ValueError as error:
        sys.exit(f"benchmarks: {error}")
    for report in reports:
        _run(report, options)
        print(report.markdown())
        print(goals_text(report))
    if options.json:
        figures = {report.broker: report.as_json() for report in reports}
        options.json.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n")
    return 1 if any(report.failures for report in reports) else 0


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--broker", choices=[*PEERS, "all"], default="redis", help="the server they run on (default redis)"
    )
    parser.add_argument("--quick", action="store_true", help="one round of less work: 3 minutes or less")
    parser.add_argument("--only", metavar="ROWS", help="rows by the beginning of their name: drain,enqueue")
    parser.add_argument("--peers", help="peers by the beginning of their name: minicelery,celery,floor")
    parser.add_argument("--rounds", type=int, help="turns of each peer at each row (default 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE")
    parser.add_argument("--venvs", type=Path, default=ROOT / ".bench", help="folder of the environments")
    return parser.parse_args()


def _new_report(broker: str, options: argparse.Namespace) -> Report:
    """An empty report with the chosen rows and peers.  Raises ValueError."""
    rows = choose_rows(table_rows(broker, _sizes(options)), options.only)
    rounds = options.rounds or (1 if options.quick else 3)
    chosen = {"rounds": rounds, "quick": options.quick}
    return Report(broker, rows, _choose_peers(broker, options.peers), {}, chosen)


def _sizes(options: argparse.Namespace) -> Sizes:
    return QUICK if options.quick else Sizes()


def _choose_peers(broker: str, names: str | None) -> list[Peer]:
    peers = PEERS[broker]
    if names is None:
        return list(peers)
    words = [word.strip() for word in names.split(",")]
    for word in words:
        if not any(peer.name.startswith(word) for peer in peers):
            known = ", ".join(peer.name for peer in peers)
            raise ValueError(f"on {broker} no peer begins with {word!r}; peers: {known}")
    return [peer for peer in peers if any(peer.name.startswith(word) for word in words)]


def _run(report: Report, options: argparse.Namespace) -> None:
    """Start the servers, prepare the peers, fill the report."""
    load = load_average()
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer())
        rabbitmq = stack.enter_context(RabbitMQServer()) if report.broker == "rabbitmq" else None
        servers = Servers(rabbitmq or redis, redis)
        versions = {server.name: server.version for server in (redis, rabbitmq) if server is not None}
        report.machine |= machine_facts(versions)
        folders = _prepare(report.peers, options.venvs, report)
        report.machine["load before"] = load
        began = time.monotonic()
        _measure(report, folders, servers, _sizes(options))
        report.options["seconds"] = round(time.monotonic() - began)
        report.machine["load after"] = load_average()


def _prepare(peers: Sequence[Peer], folder: Path, report: Report) -> dict[str, Path]:
    """The `bin` folder of every peer that could be installed."""
    environments, folders = Environments(folder), {}
    for peer in peers:
        try:
            folders[peer.name] = environments.prepare(peer.home, peer.requirements)
            report.versions[peer.name] = versions(folders[peer.name])
        except BenchError as error:
            _fail(report, f"{peer.name}: {error}")
    return folders


def _measure(report: Report, folders: dict[str, Path], servers: Servers, sizes: Sizes) -> None:
    """Let the peers take turns, session by session and round by round."""
    rounds, most = report.options["rounds"], MOST_ROUNDS[report.broker]
    wanted = {row.name for row in report.rows}
    for session in dict.fromkeys(row.session for row in report.rows):
        for number in range(min(rounds, most.get(session, rounds))):
            for peer in report.peers:
                if peer.name not in folders or session not in peer.sessions:
                    continue
                began = time.monotonic()
                try:
                    with open_turn(peer, folders[peer.name], servers) as turn:
                        values = SESSIONS[session](turn, sizes)
                except (BenchError, OSError) as error:
                    _fail(report, f"{session}, round {number + 1}, {peer.name}: {error}")
                    continue
                for row, value in values.items():
                    if row in wanted:
                        report.add(row, peer.name, number, value)
                _note(session, number, peer, report.rows, values, time.monotonic() - began)


def _note(
    session: str, number: int, peer: Peer, rows: Sequence[Row], values: dict[str, float], seconds: float
) -> None:
    figures = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
    print(f"{session} {number + 1} {peer.name}: {figures} ({seconds:.1f} s)", file=sys.stderr, flush=True)


def _fail(report: Report, text: str) -> None:
    report.failures.append(" ".join(text.split()))
    print(f"failed: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
