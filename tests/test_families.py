"""Every family of language models: an untrained student is its base, trains, is saved, generates, is counted right."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from counting import kept_for_backward
from peft import get_peft_model
from students import conversation, open_gates, picture, tiny_config, write_tiny_base
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from assistant.activations import LeanMLP, LeanRMSNorm, keep_less
from assistant.adapter_kinds import AdapterSettings
from assistant.adapters import DyQLoRAFAConfig, draw_ranks, set_rank
from assistant.chat import Conversation, Message, encode_conversation, template_of
from assistant.checkpoint import Run, attach_adapter, load_run, new_run, save_model
from assistant.decoder import load_language_model
from assistant.families import CHATML, FAMILIES, GEMMA, LLAMA_2, Template
from assistant.generation import GREEDY, advance, computing, next_token, read
from assistant.inference import Assistant
from training.planning.memory import FP32, layer_activations, planned_adapter_parameters
from training.planning.shapes import shape_in

WINDOW = 8
"""Tokens a sliding layer looks back at: fewer than a test's prompt has."""
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
OWN: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": WINDOW},
    "qwen3": {"head_dim": 32},  # wider than hidden / heads, as in Qwen3-0.6B
    "gemma3_text": {
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
    },
}
every_family = pytest.mark.parametrize("family", FAMILIES)


def write_base(directory: Path, family: str, **changes: Any) -> Path:
    """A random model of width 64 whose norms are not at their start, so that 1 + w is not w."""
    words = AutoTokenizer.from_pretrained(write_tiny_base(directory / "words"))
    special = {f"{name}_token_id": getattr(words, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **(SIZES | OWN.get(family, {}) | changes), vocab_size=len(words), **special)
    lm = AutoModelForCausalLM.from_config(config)
    for name, parameter in lm.named_parameters():
        if "norm" in name:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    lm.save_pretrained(directory / family)
    words.save_pretrained(directory / family)
    return directory / family


@pytest.fixture(scope="module")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The base of a family, made once; nothing writes into it."""
    return functools.cache(lambda family: write_base(tmp_path_factory.mktemp(family), family))


def student(base: Path, *overrides: str) -> Run:
    torch.manual_seed(1)
    run = new_run(tiny_config(base, *overrides), device="cpu")
    attach_adapter(run.student, run.config.adapter)
    run.student.eval()
    return run


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@every_family
def test_an_untrained_student_is_its_base_bit_for_bit(family: str, quantization: str, base_of: Any) -> None:
    """With its adapter on and an image to look at. Seen failing with a gate that starts open, with B not zero, and
    with Gemma's norms taken for Llama's."""
    base = base_of(family)
    run = student(base, f"decoder.quantization={quantization}")
    batch = run.processor([conversation("What is it?", "Wires.")], [[picture(0)]])
    alone = load_language_model(str(base), quantization=quantization, device="cpu", dtype=torch.float32)
    for layer in alone.modules():
        if isinstance(layer, Linear4bit):
            layer.support_avx512bf16_for_cpu = False  # the packed kernel rounds differently
    with torch.no_grad():
        seen = run.student(**batch).logits
        expected = alone(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert batch["input_ids"].shape[1] > WINDOW
    assert torch.equal(seen, expected)
    run.student.train()  # where the loss goes past the model's own way from states to logits
    taught = torch.nn.functional.cross_entropy(expected[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    torch.testing.assert_close(run.student(**batch).loss, taught)


@every_family
def test_norms_and_feed_forward_keep_less_and_the_plan_counts_it(family: str, base_of: Any) -> None:
    """Parameters to the last one, activations of a layer within 2 %. Seen failing with two norms for Gemma's four."""
    base = base_of(family)
    shape = shape_in(base / "config.json")
    counted = []
    for layers in (1, 3):
        wide = {"num_hidden_layers": layers, "sliding_window": 64, "layer_types": None}  # no mask is kept
        config = AutoConfig.for_model(family, **(SIZES | OWN.get(family, {}) | wide), vocab_size=96)
        lm = AutoModelForCausalLM.from_config(config).requires_grad_(False)
        keep_less(lm)
        assert sum(isinstance(m, LeanMLP) for m in lm.modules()) == layers
        heads = 2 if FAMILIES[family].head_norms else 0
        norms = layers * (FAMILIES[family].layer_norms + heads) + 1
        assert sum(isinstance(m, LeanRMSNorm) for m in lm.modules()) == norms
        embedded = torch.randn(1, 32, 64, requires_grad=True)
        counted.append(kept_for_backward(lm, lambda m=lm, e=embedded: m(inputs_embeds=e)))
    assert 32 * layer_activations(shape, AdapterSettings(), p=FP32) == pytest.approx(
        (counted[1] - counted[0]) / 2, rel=0.02
    )
    built = AutoModelForCausalLM.from_pretrained(base)
    assert shape.linear_parameters + shape.other_parameters == sum(p.numel() for p in built.parameters())


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text"])
def test_biases_that_a_model_states_are_counted(family: str, tmp_path: Path) -> None:
    """Seen failing for Llama, Qwen3 and Gemma 3 while only Qwen2's were known."""
    base = write_base(tmp_path, family, attention_bias=True)
    built = AutoModelForCausalLM.from_pretrained(base)
    shape = shape_in(base / "config.json")
    assert shape.linear_parameters + shape.other_parameters == sum(p.numel() for p in built.parameters())


def test_the_language_model_inside_a_gemma_for_pictures_is_a_base(tmp_path: Path) -> None:
    """Gemma 3 from 4B on is published with an image tower, which stays on the disk. Seen failing as `unknown_family`,
    and with weights drawn at random where the names inside were not mapped."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    words = AutoTokenizer.from_pretrained(write_tiny_base(tmp_path / "words"))
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    inner = SIZES | OWN["gemma3_text"] | {"vocab_size": len(words)}
    config = Gemma3Config(text_config=inner, vision_config=tower | {"image_size": 28, "patch_size": 14})
    config.mm_tokens_per_image = 4
    whole = Gemma3ForConditionalGeneration(config).eval()
    whole.save_pretrained(tmp_path / "base")
    words.save_pretrained(tmp_path / "base")
    run = student(tmp_path / "base")
    ids = torch.arange(20)[None]
    save_model(run, tmp_path / "run")
    with torch.no_grad():
        expected = whole(ids).logits
        assert torch.equal(run.student(ids).logits, expected)
        assert torch.equal(load_run(tmp_path / "run", device="cpu").student(ids).logits, expected)
    shape = shape_in(tmp_path / "base" / "config.json")
    lm = load_language_model(str(tmp_path / "base"), quantization="none", device="cpu", dtype=torch.float32)
    assert shape.linear_parameters + shape.other_parameters == sum(p.numel() for p in lm.parameters())


@pytest.mark.parametrize("start", ["none", "nf4", "bf16"])
@every_family
def test_adapters_and_gates_train_and_are_saved(family: str, start: str, base_of: Any, tmp_path: Path) -> None:
    """A step moves B and the cross-attention and nothing of the base; what is loaded says what was saved."""
    base = base_of(family)
    run = student(base, f"decoder.quantization={'nf4' if start == 'nf4' else 'none'}")
    lm = run.student.decoder.lm
    if start == "bf16":
        lm.to(torch.bfloat16)
    shape, counts = shape_in(base / "config.json"), {True: 0, False: 0}
    for name, parameter in lm.named_parameters():
        if "lora_" in name:
            counts[parameter.requires_grad] += parameter.numel()
    assert (counts[True], counts[False]) == planned_adapter_parameters(shape, run.config.adapter)
    open_gates(run.student)
    frozen = {name: p.detach().clone() for name, p in lm.named_parameters() if not p.requires_grad}
    batch = run.processor([conversation("What is it?", "Wires.")], [[picture(0)]])
    trained = [p for p in run.student.parameters() if p.requires_grad]
    run.student.train()
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for step in range(4):
        draw_ranks(lm, 0, step)
        with torch.autocast("cpu", torch.bfloat16, enabled=start == "bf16"):
            loss = run.student(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(torch.equal(p, frozen[name]) for name, p in lm.named_parameters() if name in frozen)
    if start == "bf16":
        return
    set_rank(lm, None)
    run.student.eval()
    save_model(run, tmp_path / "run")
    again = load_run(tmp_path / "run", device="cpu")
    assert again.processor.template == run.processor.template
    with torch.no_grad():
        torch.testing.assert_close(again.student(**batch).logits, run.student(**batch).logits)


@every_family
def test_generation_step_by_step_is_generation_without_a_cache(family: str, base_of: Any) -> None:
    """Past the end of a sliding window, and for two rows of different lengths. Seen failing with a mask one short."""
    run = student(base_of(family))
    open_gates(run.student)
    asked = [
        Conversation((Message("user", q, 1, "5 kV"),)) for q in ("What is it?", "Describe this micrograph, please.")
    ]
    batch = run.processor(asked, [[picture(0)], [picture(1)]], padding_side="left")
    visual = {key: batch[key] for key in ("pixel_values", "image_mask", "question_ids", "question_mask", "turn_images")}
    with computing(run.student.device):
        context = run.student.visual_context(**visual)
        rows, logits = read(run.student, batch, context)
        ids, generator = batch["input_ids"], torch.Generator()
        mask = batch["attention_mask"]
        for _ in range(2 * WINDOW):
            token = next_token(logits, GREEDY, generator)
            ids, mask = torch.cat([ids, token[:, None]], 1), torch.nn.functional.pad(mask, (0, 1), value=1)
            rows, logits = advance(run.student, rows, token)
            whole = run.student(
                ids,
                attention_mask=mask,
                position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
                image_index=batch["image_index"],
                turn_index=batch["turn_index"],
                context=context,
            ).logits
            torch.testing.assert_close(logits, whole[:, -1], atol=1e-5, rtol=1e-4)


# ---------------------------------------------------------------------------------- chat templates

TALK = Conversation(
    (
        Message("user", "What is it?", images=2, aux="5 kV"),
        Message("assistant", "Wires."),
        Message("user", "And this?", images=1),
        Message("assistant", "Pores."),
    )
)
CHATML_OWN = (
    "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% if enable_thinking is defined and "
    "not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
GEMMA_OWN = (
    "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else "
    "m['role']) + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
LLAMA_2_OWN = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
DATED = (
    "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y %H:%M:%S.%f') %}{% endif %}"
    "{{ bos_token + 'Today: ' + date_string + '\n' }}{% for m in messages %}"
    "{{ m['role'] + ': ' + m['content'] + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
MARKS = ["<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "<|eot_id|>"]


def words_with(directory: Path, template: str | None) -> Any:
    words = AutoTokenizer.from_pretrained(write_tiny_base(directory))
    words.add_special_tokens({"additional_special_tokens": MARKS}, replace_extra_special_tokens=False)
    words.chat_template = template
    return words


def prompt_of(words: Any, template: Template) -> str:
    if template.end:
        words.eos_token = template.end
    return str(words.decode(encode_conversation(TALK, words, question_tokens=9, template=template).input_ids))


def test_a_tokenizer_without_a_template_is_asked_in_its_family_s(tmp_path: Path) -> None:
    words = words_with(tmp_path, None)
    assert {name: template_of(words, family) for name, family in FAMILIES.items()} == {
        "llama": LLAMA_2,
        "mistral": LLAMA_2,
        "qwen2": CHATML,
        "qwen3": CHATML,
        "gemma3_text": GEMMA,
    }
    assert prompt_of(words, LLAMA_2) == (
        "<s>[INST] <image> <image> (5 kV) What is it? [/INST] Wires.</s>[INST] <image> And this? [/INST] Pores.</s>"
    )
    assert prompt_of(words, GEMMA) == (
        "<s><start_of_turn>user\n<image> <image> (5 kV) What is it?<end_of_turn>\n<start_of_turn>model\nWires."
        "<end_of_turn>\n<start_of_turn>user\n<image> And this?<end_of_turn>\n<start_of_turn>model\nPores.<end_of_turn>"
    )


@pytest.mark.parametrize(
    ("family", "own"),
    [("qwen2", CHATML_OWN), ("gemma3_text", GEMMA_OWN), ("llama", LLAMA_2_OWN), ("llama", DATED)],
    ids=["chatml", "gemma", "llama2", "dated"],
)
def test_the_prompt_is_what_the_tokenizer_s_own_template_renders(family: str, own: str, tmp_path: Path) -> None:
    """To the letter, but for the space that Llama 2 puts before the end of a reply. Seen failing with the one
    template of Llama 2 for every model."""
    words = words_with(tmp_path, own)
    template = template_of(words, FAMILIES[family])
    arguments = dict(FAMILIES[family].template_arguments)
    turns = [
        {"role": m.role, "content": " ".join([*["<image>"] * m.images, *([f"({m.aux})"] if m.aux else []), m.text])}
        for m in TALK.messages
    ]
    rendered = words.apply_chat_template(turns, tokenize=False, **arguments).replace(" </s>", "</s>").rstrip("\n")
    assert prompt_of(words, template) == rendered
    asked = words.apply_chat_template(turns[:3], tokenize=False, add_generation_prompt=True, **arguments)
    assert rendered.startswith(asked.replace(" </s>", "</s>"))


def test_a_prompt_holds_no_thoughts_and_no_date_of_today(tmp_path: Path) -> None:
    """Seen failing without the arguments of the family: a student would be asked otherwise tomorrow."""
    words = words_with(tmp_path / "a", CHATML_OWN)
    assert template_of(words, FAMILIES["qwen3"]).answer.endswith("<think>\n\n</think>\n\n")
    words.chat_template = DATED
    assert template_of(words, FAMILIES["llama"]).first == "<s>Today: 26 Jul 2024\nuser: "
    assert template_of(words, FAMILIES["llama"]) == template_of(words, FAMILIES["llama"])


def test_a_conversation_without_pictures_holds_no_thoughts_either(tmp_path: Path) -> None:
    """Seen failing with the template's own default."""
    base = write_base(tmp_path, "qwen3")
    words = AutoTokenizer.from_pretrained(base)
    words.chat_template = CHATML_OWN
    words.save_pretrained(base)
    assistant = Assistant(student(base))
    read_ids: list[torch.Tensor] = []
    assistant.student.decoder.lm.register_forward_pre_hook(
        lambda module, args, kwargs: read_ids.append(kwargs["input_ids"]), with_kwargs=True
    )
    list(assistant.converse("Size?", max_new_tokens=1))
    assert words.decode(read_ids[0][0]).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


@pytest.mark.parametrize("kind", ["dyqlora_fa", "dya_mope"])
def test_without_a_picture_the_base_talks_as_before_it_was_taught(kind: str, tmp_path: Path) -> None:
    """Nothing is forgotten, and the next answer about a picture is the student's. Seen failing with the adapter on."""
    base = write_base(tmp_path, "qwen3")
    words = AutoTokenizer.from_pretrained(base)
    words.chat_template = CHATML_OWN
    words.save_pretrained(base)
    untaught, taught = student(base), student(base, f"adapter.kind={kind}")
    adapter = [p for name, p in taught.student.decoder.lm.named_parameters() if "lora_B" in name]
    for parameter in adapter:
        torch.nn.init.normal_(parameter, std=1.0)
    said = [
        "".join(Assistant(run).converse("What is the size of wires?", max_new_tokens=12)) for run in (untaught, taught)
    ]
    assert said[0] == said[1]
    batch = taught.processor([conversation("What is it?", "Wires.")], [[picture(0)]])
    with torch.no_grad():
        before, after = untaught.student(**batch).logits, taught.student(**batch).logits
    assert (before - after).abs().max() > 0.1


def test_a_template_that_loses_words_is_not_used(tmp_path: Path) -> None:
    words = words_with(tmp_path, "{{ messages[-1]['content'] }}")
    assert template_of(words, FAMILIES["llama"]) == LLAMA_2


def test_a_student_on_a_chat_model_ends_its_replies_as_the_model_does(tmp_path: Path) -> None:
    """Also after saving and loading. Seen failing with the end of text in place of the end of a turn."""
    base = write_base(tmp_path, "gemma3_text")
    words = words_with(tmp_path / "marked", GEMMA_OWN)
    words.save_pretrained(base)
    lm = AutoModelForCausalLM.from_pretrained(base)
    lm.resize_token_embeddings(len(words))
    lm.save_pretrained(base)
    run = student(base)
    save_model(run, tmp_path / "run")
    for processor in (run.processor, load_run(tmp_path / "run", device="cpu").processor):
        ids = processor.encode(TALK).input_ids
        assert ids[-1] == processor.tokenizer.eos_token_id == words.convert_tokens_to_ids("<end_of_turn>")
        assert ids.count(words.bos_token_id) == 1


@every_family
def test_default_targets_are_the_linear_layers_of_the_decoder(family: str, base_of: Any) -> None:
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base_of(family)), DyQLoRAFAConfig())
    assert set(adapted.peft_config["default"].target_modules) == set(shape_in(base_of(family) / "config.json").linears)
