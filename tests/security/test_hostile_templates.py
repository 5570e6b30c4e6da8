"""Chat templates of strangers: each comes to an end, in time and in memory, and ordinary ones write what they did."""

from __future__ import annotations

import copy
import multiprocessing
import threading
import time

import jinja2.ext
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from glmtune.chatformat import template_bounds
from glmtune.chatformat.encoding import Encoder
from glmtune.chatformat.template_bounds import BoundedEnvironment, TemplateBound
from glmtune.errors import GlmtuneError
from glmtune.family import GLM
from glmtune.operating_system import start_method

TIME = "it takes more than 1 seconds"
LONG = "it makes a text of more than 64 million characters|it goes through more texts"
MUCH = "it goes through more texts, or turns of loops"
WIDE = "it asks for a width or a count of more than 100,000"
LARGE = "it computes with numbers that are too large"

GROW = (
    "{%% set ns = namespace(x=%s) %%}{%% for i in range(60) %%}{%% set ns.x = %s %%}{%% endfor %%}{{ ns.x | length }}"
)
COPY = "{%% set ns = namespace(x=[]) %%}{%% for i in range(999) %%}{%% set ns.x = ns.x + [%s] %%}{%% endfor %%}"
BIG = "{% set big = 'a' * 10000000 %}"

HOSTILE = {
    "loops in loops": ("{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}", MUCH),
    "loops that write": ("{% for a in range(99999) %}{% for b in range(999) %}xxxxxx{% endfor %}{% endfor %}", LONG),
    "loops over a text": ("{% for c in 'a' * 60000000 %}{% endfor %}", MUCH),
    "work in a condition": ("{% for a in range(99999) if range(99999) | list | length < 0 %}{% endfor %}", MUCH),
    "sorting": ("{% for a in range(99999) %}{% set x = range(99999) | sort %}{% endfor %}", f"{TIME}|{MUCH}"),
    "macros that call themselves twice": (
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}", TIME
    ),
    "doubling by ~": (GROW % ("'a'", "ns.x ~ ns.x"), LONG),
    "doubling by +": (GROW % ("'a'", "ns.x + ns.x"), LONG),
    "doubling a list": (GROW % ("[1]", "ns.x + ns.x"), LONG),
    "squaring": (GROW.replace("| length", "") % ("3", "ns.x * ns.x"), LARGE),
    "a power": ("{{ 9 ** (9 ** 9) }}", LARGE),
    "a product": ("{{ 'a' * 10000000000 }}", LONG),
    "a format": ("{{ '%1000000000d' % 1 }}", WIDE),
    "a format's width": ("{{ '%*d' % (1000000000, 1) }}", WIDE),
    "the filter format": ("{{ '%1000000000d' | format(1) }}", WIDE),
    "str.format": ("{{ '{:1000000000}'.format(1) }}", WIDE),
    "str.format within": ("{{ '{:{}}'.format(1, 1000000000) }}", WIDE),
    "str.format_map": ("{{ '{a:1000000000}'.format_map({'a': 1}) }}", WIDE),
    "ljust": ("{{ 'a'.ljust(1000000000) }}", WIDE),
    "zfill": ("{{ 'a'.zfill(1000000000) }}", WIDE),
    "center": ("{{ 'a' | center(1000000000) }}", WIDE),
    "center by map": ("{{ ['a'] | map('center', 1000000000) | list }}", WIDE),
    "tojson": ("{{ messages | tojson(indent=1000000000) }}", WIDE),
    "round": ("{{ 1.5 | round(1000000000) }}", WIDE),
    "replace": (f"{BIG}{{{{ big | replace('a', big) }}}}", LONG),
    "str.replace": (f"{BIG}{{{{ big.replace('a', big) }}}}", LONG),
    "join": (f"{BIG}{{{{ ([big] * 9999) | join }}}}", LONG),
    "str.join": (f"{BIG}{{{{ ''.join([big] * 9999) }}}}", LONG),
    "a list's text": (f"{BIG}{{{{ [big] * 9999 }}}}", LONG),
    "a list's JSON": (f"{BIG}{{{{ ([big] * 9999) | tojson }}}}", LONG),
    "lists in lists": (
        GROW.replace("| length", "") % ("['a' * 999]", "[ns.x, ns.x]"),
        LONG,
    ),
    "slices": (BIG + COPY % "big[1:]", MUCH),
    "copies": (BIG + COPY % "big.upper()", MUCH),
    "translate": ("{{ 'aaa'.translate({97: 'b' * 10000000}) }}", "it calls `translate`"),
    "wordwrap": ("{{ ('a' * 1000000) | wordwrap(1, wrapstring='b' * 1000000) }}", LONG),
    "expandtabs": ("{{ ('\t' * 1000000).expandtabs(99999) }}", LONG),
}  # fmt: skip


def rendered(template: str) -> str:
    environment = BoundedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])
    return environment.from_string(template).render(messages=[{"role": "user", "content": "a"}])


@pytest.fixture
def short_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_bounds, "MAX_SECONDS", 1.0)
    monkeypatch.setattr(template_bounds, "MAX_MADE", 1 << 27)


@pytest.mark.usefixtures("short_time")
@pytest.mark.parametrize(("template", "told"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_template_comes_to_an_end(template: str, told: str) -> None:
    started = time.monotonic()
    with pytest.raises(TemplateBound, match=told):
        rendered(template)
    assert time.monotonic() - started < 5


@pytest.mark.usefixtures("short_time")
def test_the_bounds_hold_in_threads_too() -> None:
    found: list[str] = []

    def render() -> None:
        try:
            rendered(HOSTILE["macros that call themselves twice"][0])
        except TemplateBound as error:
            found.append(str(error))

    threads = [threading.Thread(target=render) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(found) == 3


def _encode(tokenizer: object, answer: object) -> None:
    try:
        Encoder(tokenizer, GLM)
    except GlmtuneError as error:
        answer.send(error.what)  # type: ignore[attr-defined]


@pytest.mark.parametrize("in_worker", [False, True])
def test_a_model_with_such_a_template_is_refused(in_worker: bool, demo_tokenizer) -> None:
    tokenizer = copy.deepcopy(demo_tokenizer)
    tokenizer.chat_template = HOSTILE["loops in loops"][0]
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context(start_method())
    kind = context.Process if in_worker else threading.Thread
    worker = kind(target=_encode, args=(tokenizer, theirs))
    worker.start()
    assert ours.poll(60)
    assert ours.recv().startswith(f"the chat template is refused: {MUCH}")
    worker.join()


BREAKING = {
    "a macro without an end": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "a loop that calls itself": "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "a division": "{{ 1 / 0 }}",
    "a thousand brackets": "{{ " + 1000 * "(" + "1" + 1000 * ")" + " }}",
    "a huge range": "{{ range(10 ** 9) }}",
    "an attribute of Python's": "{{ messages.__class__.__mro__ }}",
    "a broken tag": "{% for %}",
}


@pytest.mark.parametrize("template", BREAKING.values(), ids=BREAKING)
def test_whatever_else_fails_in_a_template_is_one_line(template: str, demo_tokenizer) -> None:
    tokenizer = copy.deepcopy(demo_tokenizer)
    tokenizer.chat_template = template
    with pytest.raises(GlmtuneError, match="the chat template"):
        Encoder(tokenizer, GLM)


ORDINARY = [
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' ~ m.content }}{% endfor %}",
    "{{ messages | map(attribute='content') | join(', ') }}{{ 7 % 3 }}{{ 2 ** 10 }}{{ '%s-%d' % ('a', 3) }}",
    "{% for m in messages if m.role == 'user' %}"
    "{{ loop.index }}/{{ loop.length }} {{ loop.last }}{% else %}none{% endfor %}",
    "{% macro show(m) %}[{{ m.content[:1] }}|{{ caller() if caller }}]{% endmacro %}"
    "{% call show(messages[0]) %}x{% endcall %}",
    "{% set x %}{{ messages[0] | tojson(indent=2) }}{% endset %}"
    "{{ x | trim | length }}{{ x.split('\n') }}{{ x[::-1] }}",
    "{{ 'a' * 3 ~ 4 ~ none ~ missing ~ [1, 'b'] ~ {'c': 1.5} }}{{ [1] + [2] }}{{ ('a', 'b') + ('c',) }}{{ missing }}",
    "{{ messages[0].content.replace('a', 'bb').strip().upper() }}"
    "{{ '{:>5}|{x}'.format(1, x=2) }}{{ 10000000 | string }}",
    "{{ messages[0].get('none', 'default') }}{{ messages | length }}{{ [3, 1, 2] | sort }}"
    "{{ 1000000 | default(5000000) }}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}"
    "{% set ns.n = ns.n + m.content | length %}{% endfor %}{{ ns.n }}",
]  # fmt: skip


@pytest.mark.parametrize("template", ORDINARY)
def test_ordinary_templates_write_what_they_wrote(template: str) -> None:
    messages = [{"role": "user", "content": "a\nb 中文"}, {"role": "assistant", "content": "c" * 100}]
    options = {"trim_blocks": True, "lstrip_blocks": True, "extensions": [jinja2.ext.loopcontrols]}
    texts = [
        kind(**options).from_string(template).render(messages=messages)
        for kind in (ImmutableSandboxedEnvironment, BoundedEnvironment)
    ]
    assert texts[0] == texts[1]
