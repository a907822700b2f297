"""Small chat templates with the marks and variables of published ones, and a tokenizer of single bytes for them."""

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Qwen 3: thoughts of the newest turn alone are kept, and an empty block stands for none.
QWEN = (
    "{%- set ns = namespace(last=-1) %}"
    "{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}"
    "{% endfor %}"
    "{%- if tools %}<|im_start|>system\n<tools>{% for t in tools %}{{ t | tojson }}"
    "{% endfor %}</tools><|im_end|>\n{% endif %}"
    "{%- for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content and loop.index0 > ns.last %}<think>\n"
    "{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
    "{{ m.content }}"
    "{%- for c in m.tool_calls or [] %}<tool_call>{{ c.function.name }} "
    "{{ c.function.arguments | tojson }}</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)
# Qwen 3.5: the system message comes first or not at all; the prompt opens the reasoning.
QWEN_OPEN = (
    "{%- for m in messages %}{% if m.role == 'system' and not loop.first %}"
    "{{ raise_exception('System message must be at the beginning.') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
    "{% else %}<think>\n{% endif %}{% endif %}"
)
# Gemma 2: no system role, and roles that take turns.
GEMMA_2 = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# As some early templates: a system message is passed over in silence.
DEAF = (
    "{% for m in messages if m.role != 'system' %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
GEMMA_4 = (
    "{%- if enable_thinking %}<|turn>system\n<|think|><turn|>\n{% endif %}"
    "{%- for m in messages %}<|turn>{{ m.role }}\n{{ m.content }}<turn|>\n{% endfor %}"
    "{%- if add_generation_prompt %}<|turn>model\n"
    "{% if not enable_thinking | default(false) %}<|channel>thought\n<channel|>{% endif %}"
    "{% endif %}"
)
# DeepSeek V3.1: it reads "thinking", and adds arguments to texts.
DEEPSEEK = (
    "{%- for m in messages %}<｜{{ m.role }}｜>{{ m.content }}"
    "{%- for c in m.tool_calls or [] %}{{ '<｜tool▁call▁begin｜>' + c.function.name + '"
    "<｜tool▁sep｜>' + c.function.arguments }}"
    "{%- endfor %}{% endfor %}{% if tools %}{{ tools | tojson }}{% endif %}"
    "{%- if add_generation_prompt %}<｜Assistant｜>{{ '<think>' if thinking else '</think>' }}"
    "{% endif %}"
)
# gpt-oss: the first call of a message, behind words or thoughts but not both; results are named by it.
HARMONY = (
    "<|start|>system<|message|>Reasoning: {{ reasoning_effort | default('medium') }}<|end|>"
    "{%- for t in tools or [] %}<|start|>developer<|message|>type {{ t.function.name }}<|end|>"
    "{% endfor %}"
    "{%- set ns = namespace(name=none) %}{% for m in messages %}"
    "{%- if 'tool_calls' in m %}"
    "{% if m.content and m.thinking %}{{ raise_exception('Cannot pass both') }}{% endif %}"
    "{%- if m.thinking %}<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>"
    "{% endif %}"
    "{%- set call = m.tool_calls[0].function %}{% set ns.name = call.name %}"
    "<|start|>assistant to=functions.{{ call.name }}<|channel|>commentary json<|message|>"
    "{{ call.arguments | tojson }}<|call|>"
    "{%- elif m.role == 'tool' %}{% if not ns.name %}{{ raise_exception('no call') }}{% endif %}"
    "<|start|>functions.{{ ns.name }} to=assistant<|message|>{{ m.content | tojson }}<|end|>"
    "{%- elif m.role == 'assistant' %}<|start|>assistant<|channel|>final<|message|>"
    "{{ m.content }}<|end|>"
    "{%- else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{%- if add_generation_prompt %}<|start|>assistant{% endif %}"
)
# Mistral Small 4: ids of nine letters, parts of the content, an effort of none or high.
MISTRAL = (
    "{%- set effort = reasoning_effort | default('none') %}"
    "{%- if effort not in ['none', 'high'] %}"
    "{{ raise_exception('reasoning_effort must be none or high') }}{% endif %}"
    '[MODEL_SETTINGS]{"reasoning_effort": "{{ effort }}"}[/MODEL_SETTINGS]'
    "{%- if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}"
    "{%- for m in messages %}{% if m.role == 'assistant' %}"
    "{%- if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
    "{%- if part.type == 'thinking' %}[THINK]{{ part.thinking }}[/THINK]{% else %}{{ part.text }}"
    "{% endif %}{% endfor %}{% endif %}"
    "{%- for c in m.tool_calls or [] %}"
    "{% if c.id | length != 9 %}{{ raise_exception('ids have length 9') }}{% endif %}"
    "[TOOL_CALLS]{{ c.function.name }}[CALL_ID]{{ c.id }}[ARGS]"
    "{{ c.function.arguments | tojson }}{% endfor %}</s>"
    "{%- elif m.role == 'tool' %}[TOOL_RESULTS]{{ m.tool_call_id }} {{ m.content }}[/TOOL_RESULTS]"
    "{%- else %}[INST]{{ m.content }}[/INST]{% endif %}{% endfor %}"
)
SEED = (
    "{%- set thinking_budget = thinking_budget | default(-1) %}"
    "{%- for m in messages %}<seed:bos>{{ m.role }}\n{{ m.content }}<seed:eos>{% endfor %}"
    "{%- if thinking_budget > 0 %}<seed:bos>system\nwithin {{ thinking_budget }} tokens<seed:eos>"
    "{% endif %}"
    "{%- if add_generation_prompt %}<seed:bos>assistant\n"
    "{% if thinking_budget == 0 %}<seed:think><seed:cot_budget_reflect>{% endif %}{% endif %}"
)
# Nemotron: a word in the system prompt.
NEMOTRON = (
    "{%- set ns = namespace(think=true, system='') %}"
    "{%- if messages[0].role == 'system' %}{% set ns.system = messages[0].content %}{% endif %}"
    "{%- if '/no_think' in ns.system %}{% set ns.think = false %}{% endif %}"
    "<SPECIAL_10>System\n{{ ns.system.replace('/no_think', '').replace('/think', '').strip() }}\n"
    "{% for m in messages if m.role != 'system' %}<SPECIAL_11>{{ m.role }}\n{{ m.content }}\n"
    "{% endfor %}"
    "{%- if add_generation_prompt %}<SPECIAL_11>Assistant\n"
    "{{ '<think>\n' if ns.think else '<think></think>' }}{% endif %}"
)
# Many vision-language models: contents are lists of parts.
PARTS = (
    "{% for m in messages %}<|{{ m.role }}|>{% for part in m.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# Granite 3: tools, but no calls.
TOLD_ONLY = (
    "{% if tools %}<|tools|>{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tokenizer(template: Any, *, bos: bool = False, special: tuple[str, ...] = ()) -> Any:
    """Bytes are its tokens. ``bos``: it puts one before every text. ``template``: None for a base model."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({sign: number for number, sign in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, special=True) for text in ("<bos>", "<eos>", *special)])
    if bos:
        first = ("<bos>", backend.token_to_id("<bos>"))
        backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[first])
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>")
    fast.chat_template = template
    return fast
