"""Chat templates in the forms of published families, written for the tests."""

CHATML = """\
{% if messages[0].role != 'system' %}
<|im_start|>system
You answer questions.<|im_end|>
{% endif %}
{% for message in messages %}
{{ '<|im_start|>' ~ message.role ~ '\n' ~ message.content ~ '<|im_end|>' }}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\n' }}
{%- endif %}
"""

SMOLLM2 = """\
{% for m in messages %}\
{% if loop.first and m['role'] != 'system' %}{{ '<|im_start|>system\nI am small.<|im_end|>\n' }}\
{% endif %}\
{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}\
{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

LLAMA3 = """\
{{- bos_token }}
{%- set ns = namespace(said='') %}
{%- if messages[0]['role'] == 'system' %}
  {%- set ns.said = messages[0]['content'] | trim %}
  {%- set rest = messages[1:] %}
{%- else %}
  {%- set rest = messages %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\n\nToday: ' ~ strftime_now('%d %b %Y') ~ '\n\n' }}
{{- ns.said ~ '<|eot_id|>' }}
{%- for m in rest %}
  {{- '<|start_header_id|>' ~ m['role'] ~ '<|end_header_id|>\n\n' ~ m['content'] | trim }}
  {{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
  {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""

LLAMA2 = """\
{% if messages[0]['role'] == 'system' %}
{% set head = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}
{% set rest = messages[1:] %}
{% else %}{% set head = '' %}{% set rest = messages %}{% endif %}
{% for m in rest %}
{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Roles must alternate') }}
{% endif %}
{% set text = head + m['content'] if loop.first else m['content'] %}
{% if m['role'] == 'user' -%}
{{ bos_token + '[INST] ' + text.strip() + ' [/INST]' }}
{%- else -%}
{{ ' ' + text.strip() + ' ' + eos_token }}
{%- endif %}
{% endfor %}
"""

GEMMA = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' %}{{ raise_exception('No system turn here') }}{% endif %}
{%- for m in messages -%}
{%- set who = 'model' if m['role'] == 'assistant' else m['role'] -%}
{{ '<start_of_turn>' + who + '\n' + m['content'] | trim + '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}
"""

MISTRAL = """\
{%- if messages[0].role == 'system' %}
{%- set system = messages[0].content %}{%- set loop_messages = messages[1:] %}
{%- else %}{%- set loop_messages = messages %}{%- endif %}
{{- bos_token }}
{%- for m in loop_messages %}
{%- if m.role == 'user' %}
{%- if loop.last and system is defined %}{{- '[INST]' ~ system ~ '\n\n' ~ m.content ~ '[/INST]' }}
{%- else %}{{- '[INST]' ~ m.content ~ '[/INST]' }}{%- endif %}
{%- elif m.role == 'assistant' %}{{- ' ' ~ m.content | trim ~ eos_token }}
{%- else %}{{- raise_exception('Only user and assistant turns') }}{%- endif %}
{%- endfor %}
"""

PHI3 = """\
{% for m in messages %}
{% if m['role'] not in ['system', 'user', 'assistant'] %}{% continue %}{% endif %}
{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' -}}
{% endfor %}
{% if add_generation_prompt %}{{ '<|assistant|>\n' -}}{% else %}{{ eos_token -}}{% endif %}
"""

ZEPHYR = """\
{% for m in messages %}
{% if m['role'] == 'system' %}
{{ '<|system|>\n' + m['content'] + eos_token }}
{% elif m['role'] == 'user' %}
{{ '<|user|>\n' + m['content'] + eos_token }}
{% else %}
{{ '<|assistant|>\n' + m['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}
"""

# Qwen 3's form: thinking of earlier turns is left out, and an empty block says that there is none.
THINKING = """\
{%- for m in messages %}
{%- if m.role != 'assistant' %}
{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}
{%- else %}
{%- set said = m.content %}{%- set thought = '' %}
{%- if m.reasoning_content is string %}
  {%- set thought = m.reasoning_content %}
{%- elif '</think>' in said %}
  {%- set thought = said.split('</think>')[0].split('<think>')[-1].strip('\n') %}
  {%- set said = said.split('</think>')[-1].lstrip('\n') %}
{%- endif %}
{{- '<|im_start|>assistant\n' }}
{%- if loop.last %}{{- '<think>\n' + thought.strip('\n') + '\n</think>\n\n' }}{%- endif %}
{{- said + '<|im_end|>\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}
{{- '<think>\n\n</think>\n\n' }}
{%- endif %}
{%- endif %}
"""

TAGGED = """\
{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}\
{% if m.role == 'assistant' %}\
{% generation %}{{ m.content | trim + '<|im_end|>\n' }}{% endgeneration %}\
{% else %}{{ m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

# name -> (template, start token, end token, control tokens, whether it takes a system turn)
FORMS = {
    "chatml": (CHATML, None, "<|im_end|>", ("<|im_start|>", "<|im_end|>", "<|endoftext|>"), True),
    "smollm2": (SMOLLM2, "<|im_start|>", "<|im_end|>", ("<|im_start|>", "<|im_end|>"), True),
    "llama3": (
        LLAMA3,
        "<|begin_of_text|>",
        "<|eot_id|>",
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        True,
    ),
    "llama2": (LLAMA2, "<s>", "</s>", ("<s>", "</s>"), True),
    "gemma": (
        GEMMA,
        "<bos>",
        "<end_of_turn>",
        ("<bos>", "<start_of_turn>", "<end_of_turn>"),
        False,
    ),
    "mistral": (MISTRAL, "<s>", "</s>", ("<s>", "</s>", "[INST]", "[/INST]"), True),
    "phi3": (
        PHI3,
        "<s>",
        "<|endoftext|>",
        ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"),
        True,
    ),
    "zephyr": (ZEPHYR, "<s>", "</s>", ("<s>", "</s>"), True),
}
ENDS = {"phi3": ("<|end|>", "<|endoftext|>")}
