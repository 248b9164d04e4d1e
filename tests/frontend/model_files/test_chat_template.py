"""Conversations become the ids that transformers' apply_chat_template gives."""

import json

import pytest
from test_tokenizer import byte_fallback, byte_level, load, save

from event_tensor.errors import UserError
from frontend.model_files.chat_template import load_chat_template

LLAMA_3 = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Cutting Knowledge Date: December 2023\\n" }}
{{- system_message }}{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
QWEN_3 = """{%- if tools %}
    {{- '<|im_start|>system\\n' + tools|tojson + '<|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=messages|length - 1) %}
{%- for message in messages %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system = messages[0]["content"] %}{%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception("roles must alternate") }}
    {%- endif %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system is defined %}
            {{- "[INST] " + system + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- else %}
        {%- generation %}{{- " " + message["content"]|trim + eos_token }}{%- endgeneration %}
    {%- endif %}
{%- endfor %}
"""
TEMPLATES = {"llama-3": LLAMA_3, "qwen-3": QWEN_3, "mistral": MISTRAL}
TOKENS = {"bos_token": "<s>", "eos_token": {"__type": "AddedToken", "content": "</s>"},
          "added_tokens_decoder": {str(900 + k): {"content": text, "special": k != 1}
                                   for k, text in enumerate((
                                       "<|im_start|>", "<|im_end|>", "<|start_header_id|>",
                                       "<|end_header_id|>", "<|eot_id|>", "[INST]", "[/INST]"))}}
CONVERSATIONS = [
    [{"role": "user", "content": "Hello, wörld! 😀"}],
    [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "One?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " One? "},
     {"role": "assistant", "content": "<think>\nwell\n</think>\n\nTwo. "},
     {"role": "user", "content": "Three <|im_end|>?\n"}],
]


def ids_of(directory, messages):
    tokenizer = load(directory)
    return tokenizer.encode_bare(tokenizer.chat_template().render(messages))


def check_against_transformers(directory):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(directory)
    for messages in CONVERSATIONS:
        expected = theirs.apply_chat_template(messages, add_generation_prompt=True,
                                              return_dict=False)
        assert ids_of(directory, messages) == expected


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("with_bos", [True, False])
@pytest.mark.parametrize("place", ["file", "config", "list", "file over config"])
def test_ids_are_those_of_transformers(name, with_bos, place, tmp_path):
    template = TEMPLATES[name]
    in_config = {"file": None, "config": template, "file over config": "{{ 'not this' }}",
                 "list": [{"name": "tool_use", "template": "{{ 'not this' }}"},
                          {"name": "default", "template": template}]}[place]
    config = TOKENS | ({"chat_template": in_config} if in_config else {})
    save(byte_level(with_bos), tmp_path, **config)
    if "file" in place:
        (tmp_path / "chat_template.jinja").write_text(template)
    check_against_transformers(tmp_path)


def test_special_tokens_of_older_files_are_handed_in(tmp_path):
    template = "{{ bos_token }}{{ user_token }}{{ pad_token }}{{ messages[0].content }}"
    save(byte_level(), tmp_path, bos_token="<s>", pad_token=None, user_token="<|user|>",
         chat_template=template)
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(
        {"bos_token": {"content": "</s>", "lstrip": False, "rstrip": False, "normalized": False,
                       "single_word": False}}))
    check_against_transformers(tmp_path)
    assert load_chat_template(tmp_path).special_tokens == {
        "bos_token": "</s>", "eos_token": "</s>", "user_token": "<|user|>"}


@pytest.mark.parametrize("kind, make", [
    ("LlamaTokenizer", byte_fallback), ("LlamaTokenizerFast", byte_fallback),
    ("Qwen2Tokenizer", byte_level), ("PreTrainedTokenizerFast", byte_level),
    ("NoSuchTokenizer", byte_level)])
@pytest.mark.parametrize("named", [
    {}, {"bos_token": "<s>"}, {"bos_token": None, "eos_token": None, "unk_token": "<|user|>"}])
def test_tokens_that_only_the_class_names_are_handed_in(kind, make, named, tmp_path):
    from transformers import AutoTokenizer

    save(make(), tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": kind, "chat_template": LLAMA_3, **named}))
    assert load_chat_template(tmp_path).special_tokens == (
        AutoTokenizer.from_pretrained(tmp_path).special_tokens_map)


@pytest.mark.parametrize("template, words", [
    (None, ["no chat template", "chat_template.jinja"]),
    ([{"name": "tool_use", "template": ""}], ["default", "tool_use"]),
    (["default"], ["lack name or template"]), (7, ["int, not a text"])])
def test_what_is_no_template_is_named(template, words, tmp_path):
    save(byte_level(), tmp_path, **({"chat_template": template} if template is not None else {}))
    with pytest.raises(UserError) as caught:
        load_chat_template(tmp_path)
    assert all(word in str(caught.value) for word in (*words, str(tmp_path)))


@pytest.mark.parametrize("template, reason", [
    ("{{ raise_exception('roles must\\nalternate') }}", "roles must"),
    ("{% for %}", "Expected"), ("{{ 1 // 0 }}", "by zero"), ("{{ messages[9].content }}", "9"),
    ("{{ ''.__class__.__mro__ }}", "unsafe")])
def test_a_template_that_fails_is_one_sentence(template, reason, tmp_path):
    save(byte_level(), tmp_path, chat_template=template)
    with pytest.raises(UserError, match=f"chat template of .*{reason}") as caught:
        ids_of(tmp_path, CONVERSATIONS[0])
    assert "\n" not in str(caught.value)


def test_a_template_that_cannot_be_read_is_named(tmp_path):
    save(byte_level(), tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="chat_template.jinja cannot be read"):
        load_chat_template(tmp_path)


def test_a_template_of_other_tokenizer_files(tmp_path):
    from transformers import Qwen2Tokenizer

    from frontend.model_files.tokenizer import load_tokenizer

    trained = json.loads(byte_level(with_bos=False).to_str())["model"]
    vocab = trained["vocab"] | {"<|endoftext|>": len(trained["vocab"])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("\n".join(" ".join(m) for m in trained["merges"]))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "Qwen2Tokenizer", "chat_template": QWEN_3}))
    ours, theirs = load_tokenizer(tmp_path), Qwen2Tokenizer.from_pretrained(tmp_path)
    for messages in CONVERSATIONS:
        assert ours.encode_bare(ours.chat_template().render(messages)) == (
            theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))
