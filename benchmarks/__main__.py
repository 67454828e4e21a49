"""`python -m benchmarks`: one interleaved run of all peers on one Redis server."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.machine import load_average, machine_facts
from benchmarks.peers import PEERS, Peer
from benchmarks.processes import BenchError
from benchmarks.report import Report
from benchmarks.rows import LONG_SESSIONS, SESSIONS, Row, choose_rows, table_rows
from benchmarks.server import RedisServer
from benchmarks.sessions import QUICK, Sizes, open_turn
from benchmarks.venvs import ROOT, Environments, versions


def main() -> int:
    """Run, print the Markdown report, write the JSON; 1 where anything could not be measured."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that every worker is ended
    options = _parse_options()
    sizes = QUICK if options.quick else Sizes()
    try:
        rows = choose_rows(table_rows(sizes), options.only)
        peers = _choose_peers(options.peers)
    except ValueError as error:
        sys.exit(f"benchmarks: {error}")
    rounds = options.rounds or (1 if options.quick else 3)
    with RedisServer() as server:
        chosen = {"rounds": rounds, "quick": options.quick}
        report = Report(rows, peers, machine_facts(server.version), chosen)
        folders = _prepare(peers, options.venvs, report)
        report.machine["load before"] = load_average()
        began = time.monotonic()
        _measure(report, folders, server, rounds, sizes)
        report.options["seconds"] = round(time.monotonic() - began)
        report.machine["load after"] = load_average()
    print(report.markdown())
    if options.json:
        options.json.write_text(json.dumps(report.as_json(), indent=2, ensure_ascii=False) + "\n")
    return 1 if report.failures else 0


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round of less work: under 3 minutes")
    parser.add_argument("--only", metavar="ROWS", help="rows by the beginning of their name: drain,enqueue")
    parser.add_argument("--peers", help="peers by the beginning of their name: minicelery,celery,floor")
    parser.add_argument("--rounds", type=int, help="turns of each peer at each row (default 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE")
    parser.add_argument("--venvs", type=Path, default=ROOT / ".bench", help="folder of the environments")
    return parser.parse_args()


def _choose_peers(names: str | None) -> list[Peer]:
    if names is None:
        return list(PEERS)
    words = [word.strip() for word in names.split(",")]
    for word in words:
        if not any(peer.name.startswith(word) for peer in PEERS):
            raise ValueError(f"no peer begins with {word!r}; peers: {', '.join(p.name for p in PEERS)}")
    return [peer for peer in PEERS if any(peer.name.startswith(word) for word in words)]


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


def _measure(
    report: Report, folders: dict[str, Path], server: RedisServer, rounds: int, sizes: Sizes
) -> None:
    """Let the peers take turns, session by session and round by round."""
    wanted = {row.name for row in report.rows}
    for session in dict.fromkeys(row.session for row in report.rows):
        for number in range(min(rounds, 2) if session in LONG_SESSIONS else rounds):
            for peer in report.peers:
                if peer.name not in folders or session not in peer.sessions:
                    continue
                began = time.monotonic()
                try:
                    with open_turn(peer, folders[peer.name], server) as turn:
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
