"""Measures rounds of comlrl's trainers. Runs in an environment with comlrl and does not import this project.

The first line on standard input describes the work; see `sides.Side` for the protocol. A round ends after the update on
its buffers; its seconds count from the line that started it.
"""

import json
import os
import sys
import time

os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from comlrl.trainers.actor_critic import IACConfig, IACTrainer, MAACConfig, MAACTrainer
from comlrl.trainers.reinforce import MAGRPOConfig, MAGRPOTrainer
from datasets import Dataset
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import AutoTokenizer

TRAINERS = {
    "maac": (MAACTrainer, MAACConfig),
    "iac": (IACTrainer, IACConfig),
    "magrpo": (MAGRPOTrainer, MAGRPOConfig),
}


def length_ratio(*completions):
    sizes = [[len(text) + 1 for text in joint] for joint in zip(*completions, strict=True)]
    return [min(joint) / max(joint) for joint in sizes]


def main():
    work = json.loads(sys.stdin.readline())
    torch.set_num_threads(1)
    clock = getattr(time, work["clock"])
    agents, turns, generations = work["agents"], work["turns"], work["generations"]
    tokenizer = AutoTokenizer.from_pretrained(work["model"], padding_side="left")
    if work["pad_token"]:
        tokenizer.pad_token = work["pad_token"]
    items = [
        {"prompt": str(index), **{f"prompt_{agent}": text for agent, text in enumerate(prompts)}}
        for index, prompts in enumerate(prompts for one_round in work["prompts"] for prompts in one_round)
    ]

    def formatter(agent):
        return lambda item, external_prompts=None: external_prompts or item[f"prompt_{agent}"]

    def transition(agent_completions, num_agents, prompt_history_per_agent, **kwargs):
        return [
            prompt_history_per_agent[agent][-1] + " " + agent_completions[agent] + work["bridge"]
            for agent in range(num_agents)
        ]

    trainer_class, config_class = TRAINERS[work["algorithm"]]
    per_round = len(work["prompts"][0])
    if work["algorithm"] == "magrpo":  # its buffers contain nodes of the rollout tree
        buffer = per_round * sum(generations**turn for turn in range(turns))
        critics, extra = {}, {}
    else:
        buffer = per_round * generations * turns
        num_critics = 1 if work["algorithm"] == "maac" else agents
        critics = {"critics": [work["model"]] * num_critics}
        extra = {"critic_devices": "cpu", **({"use_separate_critic": True} if work["algorithm"] == "iac" else {})}
    config = config_class(
        num_train_epochs=1,
        num_agents=agents,
        num_turns=turns,
        num_generations=generations,
        max_new_tokens=work["new_tokens"],
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        rollout_buffer_size=buffer,
        train_batch_size=buffer,
        agent_devices="cpu",
        eval_interval=0,
        early_termination_threshold=None,
        **extra,
    )
    trainer = trainer_class(
        agents=[work["model"]] * agents,
        tokenizer=tokenizer,
        reward_func=length_ratio,
        formatters=[formatter(agent) for agent in range(agents)],
        args=config,
        train_dataset=Dataset.from_list(items),
        external_transition=transition if turns > 1 else None,
        **critics,
        **({"num_agents": agents} if work["algorithm"] == "magrpo" else {}),
    )
    trainer.verbose = False
    tokens: list[tuple[int, int]] = []
    for agent in trainer.agents:
        language_model = agent.model if hasattr(agent, "value_head") else agent
        language_model.generation_config.min_new_tokens = work["new_tokens"]
        count_tokens(language_model, tokens)

    steps = []

    register_optimizer_step_post_hook(lambda *args: steps.append(1))
    name = "_drain_ready_buffers" if work["algorithm"] == "magrpo" else "_drain_ready_agent_buffers"
    drain = getattr(trainer, name)
    began = [0.0]

    def wait():
        steps.clear()
        tokens.clear()
        if not sys.stdin.readline():
            os._exit(0)
        began[0] = clock()

    def drain_and_wait(*args, **kwargs):
        drain(*args, **kwargs)
        if steps:
            record = {
                "seconds": clock() - began[0],
                "prompt_tokens": sum(prompt for prompt, _ in tokens),
                "sampled_tokens": sum(sampled for _, sampled in tokens),
                "optimizer_steps": len(steps),
            }
            print("@round " + json.dumps(record), flush=True)
            wait()

    setattr(trainer, name, drain_and_wait)
    wait()
    trainer.train()


def count_tokens(language_model, tokens):
    """Record the numbers of prompt and sampled tokens of every call of `generate`."""
    generate = language_model.generate

    def counted(*args, **kwargs):
        output = generate(*args, **kwargs)
        rows, length = getattr(output, "sequences", output).shape
        prompt = kwargs["input_ids"].shape[1]
        tokens.append((rows * prompt, rows * (length - prompt)))
        return output

    language_model.generate = counted


if __name__ == "__main__":
    main()
