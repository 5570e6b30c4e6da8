"""A chat template for servers that speak OpenAI's messages alone: it turns them into GLM-4's, then renders the model's.

A server such as vLLM gives a template the tools beside the messages, calls as `tool_calls` and results as role `tool`.
Templates of GLM-4's layout look at none of these: they read tools inside a system message, a call's name in its
`metadata`, and role `observation`. What is put before the model's own template does for one request what
`data/formats/messages.py` does for a row; the tests compare the two.
"""

from __future__ import annotations

from glmtune.chatformat.rendering import ChatRenderer

# `rank`: results of several calls are put in the order of the calls, as in training. The empty text at the end keeps
# the model's template from losing a line break that it begins with.
_BEFORE = """\
{%- set glm = namespace(messages=[], ids=[], results=[], offer=none) -%}
{%- if tools and OFFERS_IN_MESSAGE -%}
  {%- set glm.offer = [] -%}
  {%- for tool in tools -%}
    {%- if tool.function -%}
      {%- set function = dict(tool.function.items() | rejectattr(1, 'none')) -%}
      {%- set glm.offer = glm.offer + [dict(tool, function=function)] -%}
    {%- else -%}
      {%- set glm.offer = glm.offer + [tool] -%}
    {%- endif -%}
  {%- endfor -%}
  {%- if messages[0].role not in ('system', 'developer') -%}
    {%- set glm.messages = [{'role': 'system', 'content': '', 'tools': glm.offer}] -%}
    {%- set glm.offer = none -%}
  {%- endif -%}
{%- endif -%}
{%- for message in messages -%}
  {%- if message.role in ('tool', 'function') -%}
    {%- set rank = glm.ids.index(message.tool_call_id) if message.tool_call_id in glm.ids else glm.ids | length -%}
    {%- set glm.results = glm.results + [{'role': 'OBSERVATION', 'content': message.content, 'rank': rank}] -%}
    {%- if loop.last or loop.nextitem.role not in ('tool', 'function') -%}
      {%- set glm.messages = glm.messages + (glm.results | sort(attribute='rank')) -%}
      {%- set glm.results = [] -%}
    {%- endif -%}
  {%- elif message.tool_calls -%}
    {%- if message.content -%}
      {%- set glm.messages = glm.messages + [{'role': message.role, 'content': message.content}] -%}
    {%- endif -%}
    {%- set glm.ids = message.tool_calls | map(attribute='id') | list -%}
    {%- for call in message.tool_calls -%}
      {%- set arguments = call.function.arguments -%}
      {%- set text = arguments if arguments is string else (arguments or {}) | tojson -%}
      {%- set call = {'role': message.role, 'metadata': call.function.name, 'content': text} -%}
      {%- set glm.messages = glm.messages + [call] -%}
    {%- endfor -%}
  {%- else -%}
    {%- set role = 'system' if message.role == 'developer' else message.role -%}
    {%- set message = dict(message.items() | rejectattr(1, 'none'), role=role) -%}
    {%- if glm.offer -%}
      {%- set message = dict(message, tools=glm.offer) -%}
      {%- set glm.offer = none -%}
    {%- endif -%}
    {%- set glm.messages = glm.messages + [message] -%}
  {%- endif -%}
{%- endfor -%}
{%- set messages = glm.messages -%}
{{ '' }}"""


def glm4_template(renderer: ChatRenderer) -> str:
    """Return the source of a Jinja template that renders OpenAI's messages as the renderer's model knows them.

    Args:
        renderer: Of a model that writes the name of a called function on the role line.
    """
    facts = renderer.facts
    offers_in_message = facts.takes_message_tools and not facts.takes_tools_argument
    before = _BEFORE.replace("OFFERS_IN_MESSAGE", str(offers_in_message).lower())
    return before.replace("OBSERVATION", facts.observation_role) + renderer.tokenizer.get_chat_template()
