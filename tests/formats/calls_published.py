"""Answers with calls as published templates and parsers' tests have them, adapted to a few tools.

``source`` names the template or test: "llama.cpp" is its models/templates or tests/test-chat.cpp, "vLLM" its examples
or tests/tool_parsers, "SGLang" its srt/function_call. ``template`` holds the marks of the chat template by which the
format is known.
"""

from typing import Any, NamedTuple

from llmsvc.formats.tools import Tool

Calls = list[tuple[str, dict[str, Any]]]


def tool(name: str, required: tuple[str, ...] = (), /, **properties: Any) -> Tool:
    parameters = {"type": "object", "properties": properties, "required": list(required)}
    return Tool(name, f"Does {name}.", parameters)


STRING, INTEGER, NUMBER, BOOLEAN = ({"type": kind} for kind in ("string", "integer", "number", "boolean"))
TOOLS = (
    tool("get_weather", ("city",), city=STRING, unit={"type": "string", "enum": ["celsius", "fahrenheit"]}),
    tool("add", ("a", "b"), a=INTEGER, b=NUMBER),
    tool("now"),
    tool("brave_search", ("query",), query=STRING),
    tool("run", ("command",), command=STRING),
    tool(
        "register_user",
        ("name", "age"),
        name=STRING,
        age=INTEGER,
        address={"type": "object", "properties": {"city": STRING, "state": STRING}, "required": ["city"]},
        role={"type": ["string", "null"]},
        passed_test=BOOLEAN,
        aliases={"type": "array", "items": STRING},
    ),
)

PARIS = ("get_weather", {"city": "Paris"})
TOKYO = ("get_weather", {"city": "Tokyo", "unit": "celsius"})
SUM = ("add", {"a": 3, "b": 3.5})
USER = (
    "register_user",
    {
        "name": "John Doe",
        "age": 37,
        "address": {"city": "San Francisco", "state": "CA"},
        "role": None,
        "passed_test": True,
        "aliases": ["John", "Johnny"],
    },
)
CODE = ("run", {"command": 'if a < b:\n    print("{[]}")\n'})


class Sample(NamedTuple):
    """One answer, and what it says."""

    name: str
    format: str
    source: str
    template: str
    text: str
    words: str
    calls: Calls


_HERMES = '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
_QWEN = "<tool_call>\n<function=example_function_name>\n<parameter=example_parameter_1>\nvalue_1\n</parameter>"
_LLAMA = 'Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}.'
_PYTHONIC = "[func_name1(params_name1=params_value1, params_name2=params_value2...), func_name2(params)]"
_DSML = '<｜DSML｜function_calls>\n<｜DSML｜invoke name="$FUNCTION_NAME">'
_USER_JSON = (
    '{"name": "John Doe", "age": 37, "address": {"city": "San Francisco", "state": "CA"}, "role": null,'
    ' "passed_test": true, "aliases": ["John", "Johnny"]}'
)
_USER_PYTHON = (
    "register_user(name='John Doe', age=37, address={'city': 'San Francisco', 'state': 'CA'}, role=None,"
    " passed_test=True, aliases=['John', 'Johnny'])"
)

SAMPLES = [
    Sample(
        "hermes",
        "hermes",
        "llama.cpp: NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
        _HERMES,
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>',
        "",
        [PARIS],
    ),
    Sample(
        "qwen-3",
        "hermes",
        "llama.cpp: Qwen-Qwen3-0.6B",
        _HERMES,
        "Let me see.\n"
        f'<tool_call>\n{{"name": "register_user", "arguments": {_USER_JSON}}}\n</tool_call>\n'
        '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
        "Let me see.\n",
        [USER, ("now", {})],
    ),
    Sample(
        "qwen-3-after-thinking",
        "hermes",
        "llama.cpp: Qwen-QwQ-32B",
        _HERMES,
        '\n\n<tool_call>\n{"name": "add", "arguments": {"a": 3, "b": 3.5}}\n</tool_call>',
        "",
        [SUM],
    ),
    Sample(
        "ernie-4.5",
        "hermes",
        "vLLM: test_ernie45_moe_tool_parser",
        _HERMES,
        '\n\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Tokyo", "unit": "celsius"}}\n</tool_call>\n',
        "",
        [PARIS, TOKYO],
    ),
    Sample(
        "granite-4",
        "hermes",
        "llama.cpp: ibm-granite-granite-4.0; vLLM: test_granite4_tool_parser",
        _HERMES,
        'Here goes the call: \n<tool_call> {"name": "get_weather", "arguments": "{\\"city\\": \\"Paris\\"}"} '
        "</tool_call> Now see?",
        "Here goes the call: \nNow see?",
        [PARIS],
    ),
    Sample(
        "smollm-3",
        "hermes",
        "https://huggingface.co/HuggingFaceTB/SmolLM3-3B: xml_tools",
        _HERMES,
        '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>',
        "",
        [PARIS],
    ),
    Sample(
        "qwen3-coder",
        "qwen-xml",
        "llama.cpp: Qwen3-Coder; test-chat",
        _QWEN,
        "I will look.\n<tool_call>\n<function=register_user>\n<parameter=name>\nJohn Doe\n</parameter>\n"
        "<parameter=age>\n37\n</parameter>\n"
        '<parameter=address>\n{"city": "San Francisco", "state": "CA"}\n</parameter>\n'
        "<parameter=role>\nnull\n</parameter>\n<parameter=passed_test>\nTrue\n</parameter>\n"
        '<parameter=aliases>\n["John", "Johnny"]\n</parameter>\n</function>\n</tool_call>\n'
        "<tool_call>\n<function=now>\n</function>\n</tool_call>",
        "I will look.\n",
        [USER, ("now", {})],
    ),
    Sample(
        "qwen-3.5",
        "qwen-xml",
        "llama.cpp: Qwen3.5-4B",
        _QWEN,
        "\n\n<tool_call>\n<function=run>\n<parameter=command>\n"
        'if a < b:\n    print("{[]}")\n\n</parameter>\n</function>\n</tool_call>',
        "",
        [CODE],
    ),
    Sample(
        "nemotron-3",
        "qwen-xml",
        "llama.cpp: NVIDIA-Nemotron-3-Nano-30B-A3B-BF16",
        _QWEN,
        "<tool_call>\n<function=add>\n<parameter=a>\n3\n</parameter>\n<parameter=b>\n3.5\n</parameter>\n"
        "</function>\n</tool_call>\n",
        "",
        [SUM],
    ),
    Sample(
        "seed-oss",
        "seed-oss",
        "llama.cpp: ByteDance-Seed-OSS; test-chat",
        "{%- set toolcall_begin_token   = '<seed:tool_call>' -%}<function=example_function_name>",
        "<seed:tool_call>\n<function=register_user>\n<parameter=name>John Doe</parameter>\n"
        "<parameter=age>37</parameter>\n<parameter=address>{'city': 'San Francisco', 'state': 'CA'}</parameter>\n"
        "<parameter=role>None</parameter>\n<parameter=passed_test>True</parameter>\n"
        "<parameter=aliases>['John', 'Johnny']</parameter>\n</function>\n</seed:tool_call>",
        "",
        [USER],
    ),
    Sample(
        "functionary-3.1",
        "function-tags",
        "llama.cpp: meetkai-functionary-medium-v3.1",
        '<function=example_function_name>{"example_name": "example_value"}</function>',
        'Well.\n<function=get_weather>{"city": "Paris"}</function>',
        "Well.\n",
        [PARIS],
    ),
    Sample(
        "minimax-m2",
        "minimax",
        "llama.cpp: MiniMax-M2",
        "{%- set toolcall_begin_token   = '<minimax:tool_call>' -%}",
        '\n\n<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">Tokyo</parameter>\n'
        '<parameter name="unit">celsius</parameter>\n</invoke>\n<invoke name="add">\n'
        '<parameter name="a">3</parameter>\n'
        '<parameter name="b">3.5</parameter>\n</invoke>\n</minimax:tool_call>',
        "",
        [TOKYO, SUM],
    ),
    Sample(
        "glm-4.5",
        "glm-4.5",
        "llama.cpp: GLM-4.6",
        "<tool_call>{function-name}\n<arg_key>{arg-key-1}</arg_key>\n<arg_value>{arg-value-1}</arg_value>",
        "\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Tokyo</arg_value>\n<arg_key>unit</arg_key>\n"
        "<arg_value>celsius</arg_value>\n</tool_call>\n<tool_call>add\n<arg_key>a</arg_key>\n<arg_value>3</arg_value>\n"
        "<arg_key>b</arg_key>\n<arg_value>3.5</arg_value>\n</tool_call>",
        "",
        [TOKYO, SUM],
    ),
    Sample(
        "glm-4.7",
        "glm-4.7",
        "llama.cpp: GLM-4.7-Flash; vLLM: test_glm47_moe_tool_parser",
        "<tool_call>{function-name}<arg_key>{arg-key-1}</arg_key><arg_value>{arg-value-1}</arg_value>",
        "Checking.<tool_call>now</tool_call><tool_call>get_weather<arg_key>city</arg_key><arg_value>Paris</arg_value>"
        "</tool_call>",
        "Checking.",
        [("now", {}), PARIS],
    ),
    Sample(
        "hunyuan-3",
        "hunyuan-3",
        "llama.cpp: tencent-Hy3; vLLM: test_hy_v3_tool_parser",
        "<tool_calls>\n<tool_call>{function-name}<tool_sep>\n<arg_key>{arg-key-1}</arg_key>\n<arg_value>",
        "Checking.<tool_calls>\n<tool_call>get_weather<tool_sep>\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n"
        "</tool_call>\n<tool_call>now<tool_sep>\n</tool_call>\n</tool_calls>",
        "Checking.",
        [PARIS, ("now", {})],
    ),
    Sample(
        "gpt-oss",
        "harmony",
        "llama.cpp: openai-gpt-oss-120b; test-chat",
        'Calls to these tools must go to the commentary channel: "<|channel|>commentary " "<|message|>"',
        '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city": "Paris"}<|call|>',
        "",
        [PARIS],
    ),
    Sample(
        "llama-3.1",
        "llama-json",
        "llama.cpp: meta-llama-Llama-3.1-8B-Instruct; vLLM: llama3.1_json",
        _LLAMA,
        '{"name": "get_weather", "parameters": {"city": "Paris"}}',
        "",
        [PARIS],
    ),
    Sample(
        "llama-3.1-nested",
        "llama-json",
        "vLLM: test_llama3_json_tool_parser",
        _LLAMA,
        '{"type": "function", "function": {"name": "get_weather", "parameters": {"city": "Paris"}}}; '
        '{"name": "add", "parameters": {"a": 3, "b": 3.5}}',
        "",
        [PARIS, SUM],
    ),
    Sample(
        "llama-3.1-python-tag",
        "llama-json",
        "https://www.llama.com/docs/model-cards-and-prompt-formats/llama3_1",
        _LLAMA,
        '<|python_tag|>{"name": "get_weather", "parameters": {"city": "Paris"}}',
        "",
        [PARIS],
    ),
    Sample(
        "llama-3.1-built-in",
        "llama-json",
        "llama.cpp: meta-llama-Llama-3.3-70B-Instruct (builtin_tools)",
        _LLAMA,
        '<|python_tag|>brave_search.call(query="weather (in Paris), \\"today\\"")',
        "",
        [("brave_search", {"query": 'weather (in Paris), "today"'})],
    ),
    Sample(
        "llama-3.2-pythonic",
        "pythonic",
        "vLLM: llama3.2_pythonic; test_pythonic_tool_parser",
        _PYTHONIC,
        f"[get_weather(city='Paris'), {_USER_PYTHON}]",
        "",
        [PARIS, USER],
    ),
    Sample(
        "llama-4",
        "pythonic",
        "vLLM: llama4_pythonic; test_llama4_pythonic_tool_parser",
        _PYTHONIC,
        '<|python_start|>[get_weather(city="Paris"), add(a="3", b="3.5")]<|python_end|>',
        "",
        [PARIS, SUM],
    ),
    Sample(
        "gemma-3-pythonic",
        "pythonic",
        "vLLM: gemma3_pythonic; https://ai.google.dev/gemma/docs/capabilities/function-calling",
        _PYTHONIC,
        "[get_weather(city=\"Martha's Vineyard\", unit='celsius')]",
        "",
        [("get_weather", {"city": "Martha's Vineyard", "unit": "celsius"})],
    ),
    Sample(
        "gemma-3-tool-code",
        "plain",
        "https://ai.google.dev/gemma/docs/capabilities/function-calling (Gemini's tool_code)",
        "",
        "Sure:\n```tool_code\nprint(default_api.get_weather(city='Paris'))\n```",
        "Sure:\n",
        [PARIS],
    ),
    Sample(
        "gemma-3-json",
        "plain",
        "https://ai.google.dev/gemma/docs/capabilities/function-calling",
        "",
        '```json\n{"name": "get_weather", "parameters": {"city": "Paris"}}\n```',
        "",
        [PARIS],
    ),
    Sample(
        "function-gemma",
        "function-gemma",
        "vLLM: test_functiongemma_tool_parser; https://ai.google.dev/gemma/docs/functiongemma",
        "<start_function_declaration><end_function_declaration><start_function_call>call:",
        "Let me check. <start_function_call>call:get_weather{city:<escape>Paris<escape>}<end_function_call>"
        "<start_function_call>call:add{a:<escape>3<escape>,b:3.5}<end_function_call>",
        "Let me check. ",
        [PARIS, SUM],
    ),
    Sample(
        "gemma-4",
        "gemma-4",
        "llama.cpp: google-gemma-4-31B-it; test-chat",
        "{{- '<|tool_call>call:' + function['name'] + '{' -}}{{- '}<tool_call|>' -}}",
        'Hi.<|tool_call>call:register_user{address:{city:<|"|>San Francisco<|"|>,state:<|"|>CA<|"|>},age:37,'
        'aliases:[<|"|>John<|"|>,<|"|>Johnny<|"|>],name:<|"|>John Doe<|"|>,passed_test:true,role:null}<tool_call|>'
        "<|tool_call>call:now{}<tool_call|>",
        "Hi.",
        [USER, ("now", {})],
    ),
    Sample(
        "mistral-v3",
        "mistral-v3",
        "vLLM: mistral; test_mistral_tool_parser",
        '{{- "[TOOL_CALLS] [" }}{{- out[:-1] }}{{- \', "id": "\' + tool_call.id + \'"}\' }}',
        'Hello[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Paris"}, "id": "bbc5b7ede"}, '
        '{"name": "add", "arguments": {"a": 3, "b": 3.5}}]',
        "Hello",
        [PARIS, SUM],
    ),
    Sample(
        "ministral-3",
        "mistral-v11",
        "llama.cpp: mistralai-Ministral-3-14B-Reasoning-2512",
        "{{- '[TOOL_CALLS]' }}{{- name + '[ARGS]' + arguments }}",
        'I see.[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}[TOOL_CALLS]add[ARGS]{"a": 3, "b": 3.5}',
        "I see.",
        [PARIS, SUM],
    ),
    Sample(
        "mistral-v11-without-mark",
        "mistral-v11",
        "vLLM: test_mistral_tool_parser (v11)",
        "{{- '[TOOL_CALLS]' }}{{- name + '[ARGS]' + arguments }}",
        '[TOOL_CALLS]add{"a": 3, "b": 3.5}[TOOL_CALLS]get_weather{"city": "Paris"}',
        "",
        [SUM, PARIS],
    ),
    Sample(
        "mistral-small-3.2",
        "mistral-ids",
        "llama.cpp: Mistral-Small-3.2-24B-Instruct-2506",
        "{{- '[TOOL_CALLS]' + tool_call.function.name }}{{- '[CALL_ID]' + tool_call.id }}{{- '[ARGS]' }}",
        '[TOOL_CALLS]get_weather[CALL_ID]000000001[ARGS]{"city": "Paris"}',
        "",
        [PARIS],
    ),
    Sample(
        "deepseek-v3",
        "deepseek-v3",
        "vLLM: deepseekv3; llama.cpp: llama-cpp-deepseek-r1",
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜><function_name>\n```json\n<function_arguments>\n```",
        "Ok.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
        '{"city": "Paris"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n'
        '{"a": 3, "b": 3.5}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        "Ok.",
        [PARIS, SUM],
    ),
    Sample(
        "deepseek-v3.1",
        "deepseek-v3.1",
        "llama.cpp: deepseek-ai-DeepSeek-V3.1",
        "'<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>'+ tool['function']['name'] + '<｜tool▁sep｜>'",
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Paris"}<｜tool▁call▁end｜>'
        "<｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "",
        [PARIS, ("now", {})],
    ),
    Sample(
        "deepseek-v3.2",
        "deepseek-v3.2",
        "llama.cpp: deepseek-ai-DeepSeek-V3.2; test-chat",
        _DSML,
        'Let me call.\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name="get_weather">\n'
        '<｜DSML｜parameter name="city" string="true">Paris</｜DSML｜parameter>\n</｜DSML｜invoke>\n'
        '<｜DSML｜invoke name="add">\n<｜DSML｜parameter name="a" string="false">3</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="b" string="false">3.5</｜DSML｜parameter>\n'
        "</｜DSML｜invoke>\n</｜DSML｜function_calls>",
        "Let me call.\n\n",
        [PARIS, SUM],
    ),
    Sample(
        "deepseek-v4",
        "deepseek-v4",
        "llama.cpp: deepseek-ai-DeepSeek-V4; SGLang: deepseekv4_detector",
        "{%- set dsml_token = '｜DSML｜' -%}{{- '\\n\\n<' + dsml_token + 'tool_calls>\\n' -}}",
        '<｜DSML｜tool_calls>\n<｜DSML｜invoke name="get_weather">\n{"city": "Paris"}\n'
        "</｜DSML｜invoke>\n</｜DSML｜tool_calls>",
        "",
        [PARIS],
    ),
    Sample(
        "kimi-k2",
        "kimi-k2",
        "llama.cpp: Kimi-K2-Instruct; vLLM: test_kimi_k2_tool_parser",
        "<|tool_calls_section_begin|><|tool_call_begin|>{{ formatted_id }}<|tool_call_argument_begin|>",
        "I'll check. <|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0 "
        '<|tool_call_argument_begin|>{"city": "Paris"}<|tool_call_end|><|tool_call_begin|>functions.add:1'
        '<|tool_call_argument_begin|>{"a": 3, "b": 3.5}<|tool_call_end|><|tool_calls_section_end|>',
        "I'll check. ",
        [PARIS, SUM],
    ),
    Sample(
        "hunyuan-a13b",
        "hunyuan",
        "vLLM: hunyuan_a13b; test_hunyuan_a13b_tool_parser",
        '<tool_calls>[{"name": "func_name1", "arguments": {"argument1": "value1"}},...]</tool_calls>',
        'I will call. <tool_calls>[{"name": "get_weather", "arguments": {"city": "Paris"}}, '
        f'{{"name": "register_user", "arguments": {_USER_JSON}}}]</tool_calls>\nThank you!',
        "I will call. Thank you!",
        [PARIS, USER],
    ),
    Sample(
        "olmo-3",
        "olmo-3",
        "vLLM: olmo3; test_olmo3_tool_parser",
        "<function_calls>\nget_weather(city='New York', units='celsius')\n</function_calls>",
        f"<function_calls>\nget_weather(city='Paris')\n{_USER_PYTHON.replace('None', 'null').replace('True', 'true')}\n"
        "</function_calls>",
        "",
        [PARIS, USER],
    ),
    Sample(
        "lfm-2",
        "lfm2",
        "llama.cpp: LFM2-8B-A1B; vLLM: test_lfm2_tool_parser",
        "List of tools: <|tool_list_start|>[",
        f'<|tool_call_start|>[get_weather(city="Paris"), {_USER_PYTHON}]<|tool_call_end|>Checking that.',
        "Checking that.",
        [PARIS, USER],
    ),
    Sample(
        "lfm-2.5",
        "lfm2",
        "llama.cpp: LFM2.5-8B-A1B; vLLM: test_lfm2_tool_parser (nested quotes)",
        '{{- "<|tool_call_start|>[" + (tool_calls_ns.tool_calls | join(", ")) + "]<|tool_call_end|>" -}}',
        "<|tool_call_start|>[run(command='sed -n '360,450p' /x/matrices/common.py\n')]<|tool_call_end|>",
        "",
        [("run", {"command": "sed -n '360,450p' /x/matrices/common.py\n"})],
    ),
    Sample(
        "nemotron-nano-2",
        "nemotron",
        "llama.cpp: NVIDIA-Nemotron-Nano-v2",
        '<TOOLCALL>[{{"name": "tool_name1", "arguments": "tool_args1"}}]</TOOLCALL>',
        '<TOOLCALL>[{"name": "get_weather", "arguments": {"city": "Paris"}}, '
        '{"name": "now", "arguments": {}}]</TOOLCALL>',
        "",
        [PARIS, ("now", {})],
    ),
    Sample(
        "command-r7b",
        "command",
        "llama.cpp: CohereForAI-c4ai-command-r7b-12-2024-tool_use; vLLM: test_cohere_command_tool_parser",
        '<|START_ACTION|>[\n {"tool_call_id": "{{ tool_idx.value }}", "tool_name": ]<|END_ACTION|>',
        '<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "get_weather", "parameters": {"city": "Paris"}},\n'
        '    {"tool_call_id": "1", "tool_name": "add", "parameters": {"a": 3, "b": 3.5}}\n]<|END_ACTION|>',
        "",
        [PARIS, SUM],
    ),
    Sample(
        "command-r-plus",
        "plain",
        "llama.cpp: CohereForAI-c4ai-command-r-plus-tool_use; test-chat",
        '"tool_name": title of the tool in the specification ```json',
        'Action:\n```json\n[{"tool_name": "get_weather", "parameters": {"city": "Paris"}}]\n```',
        "",
        [PARIS],
    ),
    Sample(
        "granite-3",
        "granite",
        "llama.cpp: ibm-granite-granite-3.3-2B-Instruct; vLLM: test_granite_tool_parser",
        "respond only with <|tool_call|> followed by a JSON list of tools used.",
        'Let me check.\n<|tool_call|> [{"arguments": {"city": "Paris"}, "name": "get_weather"}, '
        '{"name": "now", "arguments": {}}]',
        "Let me check.\n",
        [PARIS, ("now", {})],
    ),
    Sample(
        "phi-4-mini",
        "phi-4-mini",
        "llama.cpp: llama-cpp-microsoft-Phi-4-mini-instruct",
        '<|tool_call|>{"name": "foo", "arguments": {"a": 1}}<|/tool_call|>',
        '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Paris"}}]<|/tool_call|>',
        "",
        [PARIS],
    ),
    Sample(
        "phi-4-mini-functools",
        "functools",
        "vLLM: phi4_mini; llama.cpp: fireworks-ai-llama-3-firefunction-v2",
        'functools[{"name": [function name], "arguments": [function arguments as JSON]}, ...]',
        ' functools[{"name": "get_weather", "arguments": {"city": "Paris"}}, {"name": "now", "arguments": {}}]',
        "",
        [PARIS, ("now", {})],
    ),
    Sample(
        "xlam",
        "json-list",
        "vLLM: xlam_llama",
        '[{"name": "tool_call_name", "arguments": {"arg1": "value1", "arg2": "value2"}}, ...]',
        '[{"name": "get_weather", "arguments": {"city": "Paris"}}, {"name": "add", "arguments": {"a": 3, "b": 3.5}}]',
        "",
        [PARIS, SUM],
    ),
    Sample(
        "apertus",
        "apertus",
        "llama.cpp: Apertus-8B-Instruct",
        "{%- set tool_calls_token = '<|tools_prefix|>' -%}",
        '<|tools_prefix|>[{"get_weather": {"city": "Paris"}}, {"now": {}}]<|tools_suffix|>',
        "",
        [PARIS, ("now", {})],
    ),
    Sample(
        "gigachat-3.1",
        "gigachat",
        "llama.cpp: GigaChat3.1-10B-A1.8B",
        'function_call="<|function_call|>"',
        'Yes.<|function_call|>{"name": "get_weather", "arguments": {"city": "Paris"}}',
        "Yes.",
        [PARIS],
    ),
    Sample(
        "granite-20b",
        "function-call",
        "vLLM: granite_20b_fc",
        '<function_call> {"name": "no_function", "arguments": {}}',
        '<function_call> {"name": "get_weather", "arguments": {"city": "Paris"}}\n'
        '<function_call> {"name": "now", "arguments": {}}',
        "",
        [PARIS, ("now", {})],
    ),
    Sample(
        "bare-json-after-words",
        "plain",
        "SGLang: llama32_detector",
        "",
        'I will call it:\n{"name": "get_weather", "arguments": {"city": "Paris"}}',
        "I will call it:\n",
        [PARIS],
    ),
    Sample(
        "arguments-as-a-string",
        "plain",
        "https://platform.openai.com/docs/api-reference/chat: tool_calls",
        "",
        '{"name": "get_weather", "arguments": "{\\"city\\": \\"Paris\\"}"}',
        "",
        [PARIS],
    ),
]
