"""Models that differ from a Llama in one part each, and the one that differs in most."""

PLAIN_VARIANTS = {  # which LlamaForCausalLM computes
    "geglu": {"ffn": "geglu"},
    "glu": {"ffn": "glu"},
    "attention_bias": {"attention_bias": True},
    "mlp_bias": {"mlp_bias": True},
}
OWN_VARIANTS = {
    "layer_norm": {"norm": "layer"},
    "batch_norm": {"norm": "batch"},
    "no_norm": {"norm": "none"},
    "post_norm": {"norm_placement": "post"},
    "sinusoidal": {"position": "sinusoidal"},
    "learned": {"position": "learned"},
    "no_position": {"position": "none"},
    "relu": {"ffn": "relu"},
    "swish": {"ffn": "swish"},
    "gelu": {"ffn": "gelu"},
    "unscaled": {"score_scale": "1"},
    "scaled_twice": {"score_scale": "1/d"},
    "head_bias": {"head_bias": True},
    "head_bias_untied": {"head_bias": True, "tied_embeddings": False},
    "transformer_2017": {
        "norm": "layer",
        "norm_placement": "post",
        "position": "sinusoidal",
        "ffn": "relu",
        "attention_bias": True,
        "mlp_bias": True,
    },
}
VARIANTS = {**PLAIN_VARIANTS, **OWN_VARIANTS}
