"""Pictures of compositions and of results: what is in them, and that nothing breaks them."""

from __future__ import annotations

import json
import re
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minicelery import Celery, chain, chord, group, record, signature
from minicelery.drawing import Graph, graph_of
from minicelery.drawing.compositions import row_of
from minicelery.drawing.layout import WIDEST, Sheet, arrange
from minicelery.drawing.words import columns, cut_name
from minicelery.groups import GroupResult
from minicelery.result import AsyncResult

SVG = "{http://www.w3.org/2000/svg}"
NODE = re.compile(r'  n\d+(?:\("(?P<box>.*)"\)|\(\["(?P<fork>.*)"\]\))(?::::\w+)?')
EDGE = re.compile(r'  n\d+ (?:-->|-\. "[^"]*" \.->) n\d+')


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Celery]:
    url = f"sqlite:///{tmp_path / 'queue.db'}"
    app = Celery("t", broker=url, backend=url, set_as_current=False)
    yield app
    app.close()


def call(app: Celery, *args: Any, **kwargs: Any) -> Any:
    return app.signature("add", args, kwargs)


def texts(graph: Graph) -> list[str]:
    """All text of the SVG, in the document's order; the document is well-formed."""
    return [one.text or "" for one in ET.fromstring(graph.svg()).iter(f"{SVG}text")]


# -- shapes ------------------------------------------------------------------------------


def test_a_chain_is_drawn_as_boxes_in_a_row(app: Celery) -> None:
    graph = graph_of(call(app, 1, y=2) | call(app, "x"))
    assert str(graph) == graph.mermaid()
    assert graph.mermaid().splitlines() == [
        "flowchart LR", '  n1("add<br/>(1, y=2)")', "  n2(\"add<br/>('x')\")", "  n1 --> n2",
    ]  # fmt: skip
    assert texts(graph) == ["add", "(1, y=2)", "add", "('x')"]


def test_a_group_that_something_follows_comes_together_again(app: Celery) -> None:
    chart = graph_of(chord([call(app, 1), call(app, 2)], app.signature("total"))).mermaid()
    assert chart.splitlines()[1:] == [
        '  n1(["group of 2"])', '  n2("add<br/>(1)")', '  n3("add<br/>(2)")', '  n4(["all 2"])',
        '  n5("total<br/>()")', "  n1 --> n2", "  n1 --> n3", "  n2 --> n4", "  n3 --> n4", "  n4 --> n5",
    ]  # fmt: skip
    assert "all 2" not in str(graph_of(group([call(app, 1), call(app, 2)])))


def test_callbacks_and_errbacks_are_dashed_and_an_errback_of_all_is_drawn_once(app: Celery) -> None:
    whole = call(app, 1) | call(app, 2) | call(app, 3)
    whole.link(app.signature("done"))
    whole.link_error(app.signature("failed"))
    graph = graph_of(whole)
    assert re.findall(r'-\. "(.*)" \.->', graph.mermaid()) == ["link_error of 3 calls", "link"]
    assert texts(graph).count("failed") == 1
    dashed = [path for path in ET.fromstring(graph.svg()).iter(f"{SVG}path") if path.get("stroke-dasharray")]
    assert len(dashed) == 2


def test_of_callbacks_of_callbacks_only_the_first_are_drawn(app: Celery) -> None:
    whole = call(app, 0)
    for depth in range(30):
        callback, whole = whole, call(app, depth)
        whole.link(callback)
    assert 5 < texts(graph_of(whole)).count("add") < 20


@pytest.mark.parametrize("empty", [group(), chain()])
def test_what_calls_nothing_says_so(empty: Any) -> None:
    (said,) = texts(graph_of(empty))
    assert said.startswith("(empty")


def test_what_json_has_carried_looks_the_same(app: Celery) -> None:
    whole = call(app, 1) | group([call(app, 2), call(app, 3) | call(app, 4)]) | call(app, 5)
    carried = json.loads(json.dumps(whole))
    assert type(carried) is dict
    assert str(graph_of(carried)) == str(graph_of(whole))


def test_calls_in_one_message_are_counted(app: Celery) -> None:
    @app.task(name="add")
    def add(x: int, y: int) -> int:
        return x + y

    assert texts(graph_of(add.starmap([(1, 2)] * 1234))) == ["add.starmap", "1,234 calls"]
    assert texts(graph_of(add.chunks([(1, 2)] * 40, 10))) == ["add.chunks", "40 calls, 10 to a message"]


# -- size --------------------------------------------------------------------------------


def test_ten_thousand_members_are_drawn_at_once_and_most_of_them_in_one_box(app: Celery) -> None:
    header = group(call(app, number) for number in range(10_000))
    header.link_error(app.signature("failed"))
    began = time.thread_time()
    graph = graph_of(chord(header, app.signature("total")))
    assert len(graph.svg()) < 20_000
    assert len(graph.mermaid()) < 2_000
    assert time.thread_time() - began < 5
    assert {"group of 10,000", "all 10,000", "… 9,993 more"} <= set(texts(graph))


def test_a_long_chain_is_broken_and_shows_both_its_ends(app: Celery) -> None:
    sheet = arrange(row_of(chain(call(app, number) for number in range(500))))
    said = [box.title for box, *_ in sheet.boxes]
    assert said.count("… 470 more") == 1
    assert sheet.boxes[-1][0].detail == "(499)"
    assert sheet.width < WIDEST + 120
    assert len({y for _, _, y, _, _ in sheet.boxes}) > 3


def test_however_deep_and_broad_there_is_an_end_to_the_boxes(app: Celery) -> None:
    whole: Any = call(app, 1)
    for _ in range(6):
        whole = chord([whole.clone() for _ in range(5)], call(app, 2))
    assert len(row_and_sheet(whole).boxes) < 600


def row_and_sheet(whole: Any) -> Sheet:
    return arrange(row_of(whole))


def shapes(app: Celery) -> dict[str, Any]:
    add = app.signature("shop.orders.add")
    linked = chain(*[add.clone((number,)) for number in range(15)])
    for task in linked.tasks[::3]:
        task.link(chain(add, group(add, add), add))
        task.link_error(add.clone((id(task),)))
    nested = chord([add, chord([add, linked, add | add], add), group(add, add)], add)
    return {
        "linked": linked,
        "nested": nested,
        "broken": chain(nested, group(add for _ in range(50)), add, nested, add),
        "deep": chord([chord([chord([add, add], nested), add], add), linked], add),
    }


@pytest.mark.parametrize("name", ["linked", "nested", "broken", "deep"])
def test_no_box_covers_another_or_leaves_the_sheet(app: Celery, name: str) -> None:
    sheet = row_and_sheet(shapes(app)[name])
    boxes = [(x, y, x + width, y + height) for _, x, y, width, height in sheet.boxes]
    assert len(boxes) > 15
    for at, (left, top, right, bottom) in enumerate(boxes):
        assert 0 <= left < right <= sheet.width
        assert 0 <= top < bottom <= sheet.height
        for other_left, other_top, other_right, other_bottom in boxes[:at]:
            apart = right <= other_left or other_right <= left or bottom <= other_top or other_bottom <= top
            assert apart, name
    for line in sheet.lines:
        assert all(0 <= x <= sheet.width and 0 <= y <= sheet.height for x, y in line.points)


# -- text --------------------------------------------------------------------------------

HOSTILE = [
    "<script>alert(1)</script>", '"]; click n1 "x"', "`code`", "a\nb\r\x00\x1b[31m", "%%{init: {}}%%",
    "#35;#quot;", "style x:a#b;", "1. list", "- list", "__init__", "**bold**", "a-->b|c|", "end", "]]>",
    "&amp;<b>&lt;", "\u202eltr", "\ud800", "日本語のタスク", "ünï.cödé", " ",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_whatever_a_name_or_an_argument_says_is_shown_and_does_nothing(app: Celery, text: str) -> None:
    graph = graph_of(chain(app.signature(text, (text,), {"k": text}), call(app, 1)))
    root = ET.fromstring(graph.svg().encode())
    assert {one.tag.removeprefix(SVG) for one in root.iter()} == {"svg", "g", "title", "rect", "text", "path"}
    shown = text if text.isprintable() else text.encode("unicode_escape").decode()
    assert texts(graph)[0] in (shown, text) or not text.isprintable()
    lines = graph.mermaid().splitlines()
    assert (lines[0], len(lines)) == ("flowchart LR", 4)
    label = NODE.fullmatch(lines[1])
    assert label is not None
    assert NODE.fullmatch(lines[2])
    assert lines[3] == "  n1 --> n2"
    first = label["box"].split("<br/>")[0]
    assert not set('"`<>:;|%&*').intersection(re.sub(r"#\d+;", "", first))
    assert re.sub(r"#(\d+);", lambda code: chr(int(code[1])), first) == texts(graph)[0]


def test_arguments_are_shortened_whatever_they_are(app: Celery) -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError

    values = ["x" * 50_000_000, b"y" * 50_000_000, list(range(10**6)), {"deep": [[[[[Broken()]]]]]}, 10**4000]
    began = time.thread_time()
    for value in values:
        (_, shown) = texts(graph_of(call(app, value)))
        assert columns(shown) <= 40
    assert time.thread_time() - began < 5


def test_arguments_that_the_caller_hides_stay_hidden(app: Celery) -> None:
    whole = call(app, "s3cret", key="s3cret").set(argsrepr="('***',)", kwargsrepr="{}")
    graph = graph_of(whole)
    assert "s3cret" not in graph.svg() + graph.mermaid()
    assert "***" in graph.svg()


def test_of_a_long_name_the_function_is_kept() -> None:
    assert cut_name("shop." * 20 + "orders.add", 16) == "…shop.orders.add"


# -- results -----------------------------------------------------------------------------


class Trips:
    """A backend that counts how often it is read."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.count = 0

    def load(self, ids: Any) -> Any:
        self.count += 1
        return self.backend.load(ids)


def store(app: Celery, id: str, state: str, value: Any = None, **more: Any) -> AsyncResult[Any]:
    app.backend.store([record.encode(id, state, value, extra={"name": f"task.{id}"}, **more)])
    return app.AsyncResult(id)


@pytest.mark.parametrize(
    ("state", "value", "said"),
    [
        ("SUCCESS", {"n": 5}, ["task.a", "= {'n': 5}", "✓ SUCCESS"]),
        ("FAILURE", ValueError("no <b>"), ["task.a", "ValueError: no <b>", "✗ FAILURE"]),
        ("STARTED", None, ["task.a", "a", "▶ STARTED"]),
        ("PROGRESS", {"done": 1}, ["task.a", "= {'done': 1}", "◆ PROGRESS"]),
    ],
)  # fmt: skip
def test_a_state_is_told_in_words_by_a_mark_and_by_a_colour(
    app: Celery, state: str, value: Any, said: list[str]
) -> None:
    stored = record.exception_document(value) if isinstance(value, Exception) else value
    graph = graph_of(store(app, "a", state, stored))
    assert texts(graph) == said
    rest = graph_of(app.AsyncResult("unknown"))
    colours = [re.search(r'rx="6" fill="(#\w+)"', one.svg()) for one in (graph, rest)]
    assert colours[0] and colours[1] and colours[0][1] != colours[1][1]
    assert ":::" in graph.mermaid() and "classDef" in graph.mermaid()


def test_a_chain_is_drawn_from_the_result_and_from_the_id_of_any_link(app: Celery) -> None:
    ids = ["a", "b", "c"]
    for at, id in enumerate(ids):
        children = [[[ids[at + 1], None], None]] if at < 2 else []
        store(app, id, "SUCCESS", at, children=children, parent_id=ids[at - 1] if at else None)
    result = app.AsyncResult("c", parent=app.AsyncResult("b", parent=app.AsyncResult("a")))
    charts = {str(graph_of(app.AsyncResult(id))) for id in ids} | {str(graph_of(result))}
    (chart,) = charts
    assert re.findall(r"task\.(\w)", chart) == ids


def test_a_chord_s_header_stands_between_what_sent_it_and_its_body(app: Celery) -> None:
    header = [["g", None], [[["m", None], None], [["n", None], None]]]
    store(app, "first", "SUCCESS", 1, children=[[["body", header], None]])
    store(app, "m", "SUCCESS", 2)
    store(app, "n", "FAILURE", None)
    store(app, "body", "SUCCESS", 3, parent_id="first")
    charts = {str(graph_of(app.AsyncResult(id))) for id in ("first", "body")}
    (chart,) = charts
    assert re.findall(r'\[?"(task\.\w+|group[^"]*|all[^"]*)', chart) == [
        "task.first", "group of 2", "task.m", "task.n", "all 2", "task.body",
    ]  # fmt: skip


def test_what_a_task_has_sent_besides_is_drawn_after_it(app: Celery) -> None:
    store(app, "a", "SUCCESS", 1, children=[[["b", None], None], [["c", None], None]])
    assert {"sent 2", "task.b"} <= set(texts(graph_of(store(app, "b", "SUCCESS") and app.AsyncResult("a"))))


def test_a_large_group_is_read_in_one_trip_and_shows_who_has_failed(app: Celery) -> None:
    records = [
        record.encode(f"m{at}", "FAILURE" if at == 8000 else "SUCCESS", at, extra={"name": f"task.m{at}"})
        for at in range(9_900)
    ]
    app.backend.store(records)
    trips = Trips(app.backend)
    result = GroupResult("g", [AsyncResult(f"m{at}", trips, app=app) for at in range(10_000)], app=app)
    began = time.thread_time()
    graph = graph_of(result)
    said = texts(graph)
    assert time.thread_time() - began < 5
    assert trips.count == 1
    assert "task.m8000" in said
    assert "… 9,993 more" in said
    assert "9,893 SUCCESS, 100 PENDING" in said


def test_an_eager_result_is_drawn_without_a_store() -> None:
    app = Celery("t", set_as_current=False)

    @app.task(name="add")
    def add(x: int, y: int) -> int:
        return x + y

    assert texts(graph_of((add.s(1, 2) | add.s(4)).apply())) == ["add", "= 3", "✓ SUCCESS", "add", "= 7", "✓ SUCCESS"]  # fmt: skip


# -- the picture -------------------------------------------------------------------------


def test_a_picture_is_saved_as_its_name_says_and_shown_by_notebooks(app: Celery, tmp_path: Path) -> None:
    graph = graph_of(call(app, 1))
    assert graph.save(tmp_path / "x.svg").read_text(encoding="utf-8") == graph.svg() == graph._repr_svg_()
    assert graph.save(str(tmp_path / "x.MMD")).read_text(encoding="utf-8") == graph.mermaid()
    assert graph._repr_mimebundle_() == {"image/svg+xml": graph.svg(), "text/plain": graph.mermaid()}
    with pytest.raises(ValueError, match=r"x\.png.*ends with \.mmd"):
        graph.save(tmp_path / "x.png")


def test_the_svg_can_stand_in_a_page_with_others(app: Celery) -> None:
    svg = graph_of(call(app, 1) | call(app, 2)).svg()
    assert svg.startswith("<svg ")
    assert not re.search(r"<(style|script|use|image|foreignObject)\b|\b(id|href|style|on\w+)=", svg)


@pytest.mark.parametrize("other", [3, {"task": 1}, "an-id", None])
def test_what_is_neither_signature_nor_result_is_refused(other: Any) -> None:
    with pytest.raises(TypeError, match="takes a signature"):
        graph_of(other)


def test_every_edge_leads_from_a_node_to_a_node(app: Celery) -> None:
    for whole in shapes(app).values():
        lines = str(graph_of(signature(whole))).splitlines()[1:]
        nodes = {line.split("(")[0].strip() for line in lines if NODE.fullmatch(line)}
        edges = [line for line in lines if EDGE.fullmatch(line)]
        assert len(nodes) + len(edges) == len(lines) - sum("classDef" in line for line in lines)
        assert {name for line in edges for name in re.findall(r"\bn\d+\b", line)} == nodes
