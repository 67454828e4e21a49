"""Signatures and compositions come out as with Celery: the same dicts of the same expressions."""

from __future__ import annotations

import random
from typing import Any

import pytest

pytest.importorskip("celery")

from tests.unit.canvas_oracle import CELERY, OPERANDS, OURS

SIGNATURES = r"""
add.s(1, 2)
add.s(1, 2, z=3)
add.s(1, 2).args
add.s(1, z=3).kwargs
add.s(1).set(countdown=3).options
add.si(1).immutable
add.s(1).immutable
add.s(1).name
add.s(1).task
add.s(1).subtask_type
add.s(1).id
add.s(1).parent_id
add.s(1).root_id
add.s(1).set(task_id='x').id
add.s(1).type.name
add.s(1).app is app
add.s(1).args == (1,)
add.s(1) == add.s(1)
add.s(1) == add.s(2)
add.s(1) == {'task': 'add', 'args': (1,), 'kwargs': {}, 'options': {}, 'subtask_type': None, 'immutable': False}
isinstance(add.s(1), dict)
dict(add.s(1))
add.signature((1,), {'a': 1}, countdown=2)
add.subtask((1,), countdown=2, immutable=True)
signature('add', args=(1, 2), kwargs={'x': 1}, countdown=3)
signature('add', (1, 2), {'x': 1}, {'queue': 'q'}, immutable=True)
signature('add', args=[1])
signature(add, (1,))
signature(add.s(1))
(lambda one: [signature(one) is one, signature(one) == one, maybe_signature(one) is one])(add.s(1))
maybe_signature(None)
maybe_signature(dumped(add.s(1)))
Signature('add', (1,))
signature({'task': 'add', 'args': [1], 'kwargs': {}, 'options': {}, 'subtask_type': None, 'immutable': True})
add.s(1).clone()
add.s(1).clone((2,), {'b': 1}, queue='x')
add.si(1).clone((2,), {'b': 1}, queue='x')
add.s(1).set(immutable=True).clone((3,))
add.s(a=1).clone(kwargs={'a': 2})
add.s(1).partial((2,))
add.s(1).set(group_id='g').clone(group_id='h', queue='q')
add.s(1).set(countdown=3).clone(countdown=None)
add.s().set(z=1, stamped_headers=['z']).clone(z=2, y=2, stamped_headers=['y'])
add.s(1).replace(args=(5,))
add.s(1, a=2).set(queue='q').replace(kwargs={'b': 1}, options={'x': 1})
after(add.s(1), 'freeze', 'my-id')
after(add.s(1), 'freeze', 'my-id', group_id='g', chord=total.s(), root_id='r', parent_id='p', group_index=2)
after(after(add.s(1), 'freeze', 'my-id'), 'freeze', 'other')
add.s(1).freeze('my-id').id
after(add.s(), 'link', mul.s())
after(after(add.s(), 'link', mul.s()), 'link', mul.s())
after(add.s(), 'link_error', mul.s())
add.s().link(mul.s())
add.s().link_error(mul.s())
add.s().on_error(mul.s())
add.s().append_to_list_option('link', mul.s())
after(add.s(), 'extend_list_option', 'link', [mul.s()])
after(add.s(), 'link', mul.s(1)).flatten_links()
after(after(add.s(), 'link', after(mul.s(), 'link', total.s())), 'link', mul.s(9)).flatten_links()
after(add.s(1), 'set_immutable', True)
after(add.s(1), '__setattr__', 'args', (9,))
after(add.s(1), '__setattr__', 'kwargs', {'a': 9})
after(add.s(1), '__setattr__', 'options', {'queue': 'q'})
after(add.s(1), '__setattr__', 'immutable', True)
after(add.s(1), '__setattr__', 'id', 'x')
repr(add.s(1, 'x', a=2))
add.s(1).reprcall(5, z=1)
add.si(1).reprcall(5)
__import__('copy').deepcopy(add.s(1).set(queue='x'))
__import__('pickle').loads(__import__('pickle').dumps(add.s(1)))
add.map([1, 2, 3])
add.map(range(3))
add.map([1]).clone()
add.map([1]).set(queue='x')
repr(add.map([1, 2]))
add.starmap([(1, 2), (3, 4)])
add.starmap(zip(range(2), range(2)))
repr(add.starmap([(1, 2)]))
add.chunks([(1, 2), (3, 4), (5, 6)], 2)
add.chunks(zip(range(5), range(5)), 2).group()
add.chunks([], 2).group()
chunks(add.s(), [(1, 2)], 1)
xmap(add.s(), [1])
xstarmap(add.s(), [(1,)])
"""

COMPOSITIONS = r"""
chain()
chain(add.s())
chain([add.s()])
chain(add.s(), mul.s())
chain([add.s(), mul.s()])
chain((add.s(), mul.s()))
chain(add.s(i) for i in range(3))
chain(chain(add.s(), mul.s()), chain(total.s()))
chain(chain(add.s(), mul.s()))
chain(group(add.s(), mul.s()))
chain([group(add.s(), mul.s())])
chain(group(add.s(), mul.s()), total.s())
chain(add.s(), queue='x')
chain(group(add.s(), mul.s()), total.s(), queue='x')
chain(add.s(), mul.s()).set(queue='x')
chain(add.s(), mul.s()).set(immutable=True)
chain(add.s(), mul.s()).clone()
chain(add.s(), mul.s()).clone(queue='z')
chain(add.s(), mul.s()).on_error(note.s()).unchain_tasks()
after(chain(add.s(), mul.s()), 'set_immutable', True)
after(chain(add.s(), mul.s()), 'link', note.s())
after(chain(add.s(), mul.s()), 'link_error', note.s())
after(chain(add.s(), add.s()), '__setattr__', 'tasks', [mul.s(), mul.s()])
isinstance(chain(group(add.s(), add.s()), add.s()), chord)
bool(chain())
chain(add.s(), mul.s()).app is app
repr(chain(add.s(1), mul.s(2)))
repr(pay.s(1) | ship.s(2) | add.s())
chain(add.s(), mul.s()).freeze('x').id
after(chain(add.s(), mul.s()), 'freeze', 'x').tasks[-1].id
after(chain(add.s(), mul.s()), 'freeze').tasks[0].id != None
(lambda one: (lambda result: [result.id == one.tasks[1].id, result.parent.id == one.tasks[0].id])(one.freeze()))(chain(add.s(), mul.s()))
group()
group([])
group(add.s())
group([add.s()])
group(add.s(), mul.s())
group([add.s(), mul.s()])
group(add.s(i) for i in range(3))
group((add.s(i) for i in range(3)), queue='x')
group(group(add.s(), mul.s()))
group(group(add.s(), mul.s()), total.s())
group([group(add.s(), mul.s())])
group(chain(add.s(), mul.s()))
group([dumped(add.s(1)), dumped(mul.s(1))])
group(add.s(), mul.s(), queue='x')
group(add.s(), mul.s()).set(queue='x')
group(add.s(), mul.s()).set(immutable=True)
group(add.s(), mul.s()).clone()
len(group(add.s(), mul.s()))
bool(group([]))
after(group(add.s(), mul.s()), 'set_immutable', True)
after(group(add.s(), mul.s()), 'link', note.s())
after(group(add.s(), mul.s()), 'link_error', note.s())
group(add.s(), mul.s()).link(note.s())
group(add.s(), mul.s()).link_error(note.s())
after(group(add.s()), '__setattr__', 'tasks', [mul.s()])
group(add.s(), mul.s(), add.s()).skew()
group(add.s(), mul.s(), add.s()).skew(start=2, stop=4, step=1)
group([mul.s() for _ in range(6)]).skew(start=1, stop=3)
group([mul.s() for _ in range(6)]).skew(0, 1, 0.25)
repr(group([]))
repr(group([add.s(1), mul.s(2)]))
repr(group([pay.s(1), ship.s(2), add.s()]))
(lambda one: (lambda result: [result.id == one.id, [each.id for each in result.results] == [each.id for each in one.tasks], [each.options['group_index'] for each in one.tasks]])(one.freeze()))(group(add.s(), mul.s()))
chord([add.s(), mul.s()])
chord([add.s(), mul.s()], total.s())
chord((add.s(i) for i in range(3)), total.s())
chord(group(add.s(), mul.s()), total.s())
chord(group(add.s(i) for i in range(2)), total.s())
chord(add.s(), total.s())
chord([], total.s())
chord([dumped(add.s())], dumped(total.s()))
chord([add.s()], group(mul.s(), mul.s()))
chord([add.s()], chain(mul.s(), mul.s()))
chord([add.s()], body=total.s(), queue='x')
chord(header=[add.s()], body=total.s())
chord([add.s()], total.s()).set(queue='z')
chord([add.s()], total.s()).set(immutable=True)
chord([add.s()], total.s()).clone()
chord([add.s()], total.s()).clone(queue='z')
chord([add.s()], total.s()).tasks
chord([add.s()], total.s()).body
chord([add.s()], total.s()).on_error(note.s())
after(chord([add.s(), mul.s()], total.s()), 'link', note.s())
after(chord([add.s(), mul.s()], total.s()), 'link_error', note.s())
after(chord([add.s(), chord([mul.s()], note.s(3))], total.s()), 'link_error', note.s())
after(chord([add.s(), mul.s()], chain(total.s(), add.s())), 'link_error', note.s())
after(chord([add.s()], total.s()), '__setattr__', 'body', mul.s())
after(chord([add.s(), mul.s()], total.s()), 'set_immutable', True)
chord([add.s(), mul.s()], total.s()).__length_hint__()
chord([add.s(), group(mul.s(), mul.s())], total.s()).__length_hint__()
chord([add.s(), chain(mul.s(), group(mul.s(), mul.s()))], total.s()).__length_hint__()
chord([chord([add.s(), add.s()], group(mul.s(), mul.s()))], total.s()).__length_hint__()
chord([add.s()], total.s()).app is app
signature(dumped(chain(add.s(1), group(mul.s(2), mul.s(3)))))
isinstance(signature(dumped(chain(add.s(1), mul.s(2)))).tasks[0], Signature)
isinstance(signature(dumped(group(chain(add.s(), mul.s()), mul.s(2)))), group)
isinstance(signature(dumped(chord([add.s(1), mul.s(2)], total.s()))), chord)
isinstance(signature(dumped(chord([add.s(1), mul.s(2)], total.s()))).body, Signature)
isinstance(__import__('pickle').loads(__import__('pickle').dumps(group(add.s(1), mul.s(2)))), group)
__import__('pickle').loads(__import__('pickle').dumps(chain(add.s(1), group(mul.s(2), mul.s(3)))))
"""


def lines(text: str) -> list[str]:
    return text.strip().splitlines()


@pytest.mark.parametrize("expression", lines(SIGNATURES) + lines(COMPOSITIONS))
def test_an_expression_comes_out_as_with_celery(expression: str) -> None:
    assert OURS(expression) == CELERY(expression)


@pytest.mark.parametrize("first", OPERANDS)
def test_a_bar_makes_of_two_what_celerys_makes(first: str) -> None:
    for then in OPERANDS.values():
        for form in ("{} | {}", "chain({}, {})", "chain([{}, {}])"):
            expression = form.format(OPERANDS[first], then)
            assert OURS(expression) == CELERY(expression), expression


@pytest.mark.parametrize("form", [" | ", ", "])
def test_many_in_a_row_are_put_together_as_by_celery(form: str) -> None:
    draw = random.Random(5)
    for _ in range(250):
        row = form.join(draw.choices(list(OPERANDS.values()), k=draw.randint(3, 7)))
        expression = row if "|" in form else f"chain({row})"
        assert OURS(expression) == CELERY(expression), expression


def test_compositions_of_compositions_are_put_together_as_by_celery() -> None:
    draw = random.Random(6)

    def some(most: int) -> str:
        return ", ".join(draw.choices(list(OPERANDS.values()), k=draw.randint(1, most)))

    for _ in range(150):
        expression = (
            f"chain([{some(3)}]) | group({some(3)}) | chord([{some(3)}], {some(1)}) | ({some(1)} | {some(1)})"
        )
        assert OURS(expression) == CELERY(expression), expression


OPERATORS = [
    "add.s(1) | 5", "add.s(1) | None", "add.s(1) | [add.s()]", "5 | add.s(1)",
    "group(add.s(1)).apply_async(link=mul.s())", "group(add.s(1)).apply_async(link_error=mul.s())",
    "add.map(5)", "signature('add', 5)",
]  # fmt: skip


@pytest.mark.parametrize("expression", OPERATORS)
def test_what_celery_refuses_is_refused_alike(expression: str) -> None:
    for library in (CELERY, OURS):
        with pytest.raises(TypeError):
            library(expression)


DIFFERENT: dict[str, tuple[str, Any]] = {
    "a group of one keeps its options where it is unrolled": (
        "(add.s() | group([mul.s()], queue='q')).tasks[1].options",
        {"queue": "q"},
    ),
    "options of a chain stay with its first task where another joins it": (
        "(chain(add.s(), mul.s()).set(queue='q') | total.s()).tasks[0].options",
        {"queue": "q"},
    ),
    "arguments of a chain's copy are its first task's": (
        "[list(each.args) for each in chain(add.s(1), mul.s(2)).clone((5,)).tasks]",
        [[5, 1], [2]],
    ),
    "a chord of a chain has it as one part": ("len(chord(chain(add.s(), mul.s()), total.s()).tasks)", 1),
    "a chord of a group with options keeps them": (
        "(lambda one: one.header.options)(chord(group([add.s()], queue='q'), total.s()))",
        {"queue": "q"},
    ),
    "a chain has the length of its links": ("len(chain(add.s(), mul.s()))", 2),
    "a chain stays immutable through JSON": (
        "signature(dumped(after(chain(add.s(), mul.s()), 'set_immutable', True))).immutable",
        True,
    ),
    "a chord reads as it is written": (
        "repr(chord([add.s(1), mul.s(2)], total.s()))",
        "chord([add(1), mul(2)], total())",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DIFFERENT)
def test_where_celery_loses_something_it_is_kept(name: str) -> None:
    expression, expected = DIFFERENT[name]
    assert OURS(expression) == expected
    try:
        assert CELERY(expression) != expected
    except AttributeError:
        pass  # Celery has no such thing
