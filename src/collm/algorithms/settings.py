"""Checks of the settings that all algorithms share; they run before any weights load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from collm.errors import ConfigurationError
from collm.models.policy_spec import PolicySpec
from collm.runtime.naming import check_agent_ids


def specs_of(agent_ids: Sequence[str], policy: PolicySpec, policies: Mapping[str, PolicySpec]) -> dict[str, PolicySpec]:
    """The policy of each agent: its entry in `policies`, or `policy`."""
    check_agent_ids(agent_ids)
    unknown = sorted(set(policies) - set(agent_ids))
    if unknown:
        raise ConfigurationError(
            f"model.policies names {', '.join(unknown)}, but the environment's agents are "
            f"{', '.join(agent_ids)}; rename or remove them."
        )
    return {agent_id: policies.get(agent_id, policy) for agent_id in agent_ids}


def check_parameters(parameters: str, specs: Mapping[str, PolicySpec]) -> None:
    """Raise `ConfigurationError` if `parameters` does not fit the policies of the agents."""
    num_agents = len(specs)
    specs = {agent_id: spec for agent_id, spec in specs.items() if not spec.is_remote}
    if parameters == "lora" and any(spec.lora_rank == 0 for spec in specs.values()):
        raise ConfigurationError("parameters is 'lora' but policy.lora_rank is 0; set it to the adapter's rank.")
    if parameters == "shared" and 0 < len(specs) < num_agents:
        raise ConfigurationError(
            "parameters is 'shared', but some agents are endpoints; use 'separate' or 'lora', or ask all elsewhere."
        )
    if parameters == "shared" and len({str(spec) for spec in specs.values()}) > 1:
        raise ConfigurationError(
            "parameters is 'shared' but the agents' policies differ; drop `policies` or use 'separate' or 'lora'."
        )
    if parameters == "shared":
        refuse_foreign(specs, "agents that share their parameters")


def refuse_foreign(specs: Mapping[str, PolicySpec], what: str) -> None:
    """Raise `ConfigurationError` if an agent does not learn where all have to.

    Args:
        specs: The policies of the agents.
        what: What needs all agents to learn, in words.
    """
    for agent_id, spec in specs.items():
        if not spec.learns:
            how = "an endpoint" if spec.is_remote else "frozen"
            raise ConfigurationError(
                f"policy of {agent_id!r} is {how}, but {what} all learn; use `parameters: separate` and an algorithm "
                "with critics of its own, such as CoLLMCC."
            )
