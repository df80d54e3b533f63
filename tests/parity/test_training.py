"""Training and generation against transformers: the same loss, the same gradients, the same words."""

import pytest
import torch
import transformers

from school import LIVELY, conversation, draft, fp32_run, write_pupil
from schoolhouse.infer.engine import Engine
from schoolhouse.infer.sampler import Sampling
from schoolhouse.model.weights import load_model
from schoolhouse.tasks.task import SYSTEM_THINKING
from schoolhouse.text.chat import ChatFormat
from schoolhouse.train import sft
from schoolhouse.train.result import keep_model

TALKS = [
    conversation("Start with 7. Add 5.", "7 + 5 = 12", SYSTEM_THINKING),
    conversation("Start with 3. Multiply by 3. Subtract 4.", "3 * 3 = 9\n9 - 4 = 5", SYSTEM_THINKING),
    conversation("A stack has boxes.", "red yellow blue", SYSTEM_THINKING),
]


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def folder(request, tmp_path_factory):
    return write_pupil(
        tmp_path_factory.mktemp("pupil"), 3, tie_word_embeddings=request.param, **LIVELY, num_key_value_heads=1
    )


@pytest.fixture(scope="module")
def theirs(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def test_loss_and_gradients_of_a_masked_batch_are_transformers(folder, theirs):
    chat, ours = ChatFormat.load(folder), load_model(folder)
    rows = [chat.render(talk) for talk in TALKS]
    learnt = sum(sum(row.loss_mask) for row in rows)
    loss, _ = sft.cross_entropy(ours, sft.make_part(rows, learnt, torch.device("cpu")))
    loss.backward()

    width = max(len(row.ids) for row in rows)
    ids = torch.tensor([row.ids + [0] * (width - len(row.ids)) for row in rows])
    labels = torch.tensor(
        [
            [token if learn else -100 for token, learn in zip(row.ids, row.loss_mask, strict=True)]
            + [-100] * (width - len(row.ids))
            for row in rows
        ]
    )
    real = torch.tensor([[1] * len(row.ids) + [0] * (width - len(row.ids)) for row in rows])
    theirs.zero_grad()
    wanted = theirs(input_ids=ids, attention_mask=real, labels=labels).loss
    wanted.backward()

    torch.testing.assert_close(loss.detach(), wanted.detach(), rtol=1e-5, atol=1e-5)
    slopes = {name: p.grad for name, p in theirs.named_parameters()}
    assert slopes.keys() == dict(ours.named_parameters()).keys()
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, slopes[name], rtol=1e-4, atol=1e-4)
        assert float(slopes[name].abs().max()) > 1e-3, "a gradient of nothing would prove nothing"


def test_greedy_replies_are_transformers(folder, theirs):
    chat = ChatFormat.load(folder)
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(0, 512, (n,), generator=generator).tolist() for n in (3, 17, 40)]
    stop = next(iter(chat.stop_ids))
    ours = Engine(load_model(folder)).generate(prompts, Sampling(30, 0.0, stop_ids=frozenset({stop})))
    for prompt, row in zip(prompts, ours, strict=True):
        ids = torch.tensor([prompt])
        wanted = theirs.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=30,
            eos_token_id=stop,
            pad_token_id=0,
        )
        assert row[0].ids == wanted[0, len(prompt) :].tolist()


def test_what_training_writes_loads_in_transformers(folder, tmp_path):
    model = load_model(folder)
    out = draft(tmp_path / "out")
    keep_model(model, folder, 0, fp32_run(tmp_path), out)
    again = transformers.AutoModelForCausalLM.from_pretrained(out.path, dtype=torch.float32)
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, load_model(out.path)(ids).logits, rtol=1e-5, atol=1e-4)
