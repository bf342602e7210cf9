"""Two hundred names that an environment may give its agents, and a game of agents who are called so."""

from __future__ import annotations

from toy import Toy

_PATHS = [
    *("0", "1", "2", "10", "-1", "00", "model", "layers", "lm", "lm_head", "embed_tokens", "norm", "self_attn", "mlp"),
    *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "input_layernorm", "base_layer"),
    *("lora_A", "lora_B", "lora_", "lora_dropout", "lora_embedding_A", "lora_magnitude_vector", "lora_bias", "weight"),
    *("bias", "transformer", "h", "wte", "backbones", "critics", "backbone", "model.layers.0", "layers.0.mlp"),
    *("lora_A.weight", "q_proj.lora_A", "base_model.model", "base_model", "lm.model", "backbones.0.lm", "q", "proj"),
]
_ATTRIBUTES = [
    *("train", "eval", "keys", "values", "items", "type", "pop", "clear", "update", "half", "float", "double", "to"),
    *("cuda", "cpu", "forward", "modules", "children", "parameters", "buffers", "state_dict", "load_state_dict"),
    *("training", "apply", "named_modules", "add_module", "register_buffer", "requires_grad_", "zero_grad", "share"),
    *("__class__", "__init__", "__dict__", "__getattr__", "_modules", "_parameters", "_buffers", "T_destination"),
    *("dump_patches", "call_super_init", "extra_repr", "get_submodule", "compile", "bfloat16", "xpu", "ipu"),
]
_OURS = [
    *("critic", "team", "policy", "policies", "reference", "reference_x", "x", "reference_reference_x", "reference_"),
    *("policy/critic", "policy/policy/critic", "critic/x", "critic/critic", "critic/", "policy/x", "base 0", "base 1"),
    *("own", "none", "None", "null", "true", "default", "self", "active_adapter", "all-linear", "agents", "joint"),
    *("optimizer_states", "state", "loss", "step", "epoch", "<x>", "<critic>", "<>", "<0>", "%3Cx%3E", "x%", "%", "%%"),
]
_SIGNS = [
    *(".", "..", "...", "a.b", "a/b", "a.b/c", "a_b", "a b", "a-b", "a:b", "a\\b", "../x", "/", "/etc", "~", "~x"),
    *("step.1", "step-1", "step_1", "step 1", "step%2E1", "step%2e1", ".hidden", "trailing.", "-rf", "--", "*", "?"),
    *("a|b", "a;b", "a&b", "$HOME", "`id`", "'", '"', "a,b", "a=b", "{x}", "${x}", "[x]", "(x)", "#", "@x", "!x", "^"),
    *(" ", "  ", " x", "x ", "\t", "\n", "a\nb", "\r", "\0", "\x7f", "nul", "con"),
]
_SCRIPTS = [
    *("é", "e\u0301", "ß", "SS", "ss", "İ", "i", "ı", "ﬁ", "fi", "Ω", "ω", "名前", "имя", "שם", "🤖", "🤖🤖", "\u200b"),
    *(
        "\ufeff",
        "\u202eabc",
        "１",
        "①",
        "A",
        "a",
        "AA",
        "Aa",
        "aA",
        "aa",
        "Agent",
        "agent",
        "AGENT",
        "agent_1",
        "agent1",
    ),
    *("agent_11", "agent_10", "gent_1", "x" * 200, "x" * 201, "x" * 1000, "x" * 1000 + "y", "é" * 100, "é" * 101),
]
NAMES = list(dict.fromkeys([*_PATHS, *_ATTRIBUTES, *_OURS, *_SIGNS, *_SCRIPTS]))


class Awkward(Toy):
    """The toy game of one turn for a part of these agents.

    Args:
        first: Number of the first one.
        stop: Number after the last one.
    """

    def __init__(self, first: int = 0, stop: int = len(NAMES)):
        super().__init__(horizon=1, num_tasks=1, num_eval=1)
        self.agent_ids = tuple(NAMES[first:stop])
