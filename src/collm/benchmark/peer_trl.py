"""Measures rounds of TRL's GRPOTrainer. Runs in an environment with trl and does not import this project.

The first line on standard input describes the work; see `sides.Side` for the protocol. A round is one optimizer step
and the generation before it.
"""

import json
import os
import sys
import tempfile
import time

os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer


def length(completions, **kwargs):
    return [min(len(text), 200) / 200 for text in completions]


class InTurn(TrainerCallback):
    """Prints the measurements of every round and waits for a line that starts the next one."""

    def __init__(self, tokens, clock):
        self.tokens = tokens
        self.clock = clock

    def wait(self):
        self.tokens.clear()
        if not sys.stdin.readline():
            os._exit(0)
        self.began = self.clock()

    def on_train_begin(self, *args, **kwargs):
        self.wait()

    def on_step_end(self, *args, **kwargs):
        record = {
            "seconds": self.clock() - self.began,
            "prompt_tokens": sum(prompt for prompt, _ in self.tokens),
            "sampled_tokens": sum(sampled for _, sampled in self.tokens),
        }
        print("@round " + json.dumps(record), flush=True)
        self.wait()


def main():
    work = json.loads(sys.stdin.readline())
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(work["model"], padding_side="left")
    if work["pad_token"]:
        tokenizer.pad_token = work["pad_token"]
    per_round = len(work["prompts"][0]) * work["generations"]
    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=per_round,
        num_generations=work["generations"],
        max_completion_length=work["new_tokens"],
        max_steps=len(work["prompts"]),
        generation_kwargs={"min_new_tokens": work["new_tokens"]},
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        beta=0.0,
        learning_rate=5e-6,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        shuffle_dataset=False,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(work["model"], dtype=torch.float32),
        reward_funcs=length,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": prompts[0]} for one in work["prompts"] for prompts in one]),
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    tokens = []
    generate = trainer.model.generate

    def counted(*args, **kwargs):
        sequences = generate(*args, **kwargs)
        rows, total = sequences.shape
        prompt = kwargs["input_ids"].shape[1]
        tokens.append((rows * prompt, rows * (total - prompt)))
        return sequences

    trainer.model.generate = counted
    trainer.add_callback(InTurn(tokens, getattr(time, work["clock"])))
    trainer.train()


if __name__ == "__main__":
    main()
