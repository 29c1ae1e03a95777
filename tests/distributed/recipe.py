"""The small model that every distributed test trains, as a recipe file has it."""

RECIPE = {
    "model": {
        "num_layers": 4,
        "hidden_size": 64,
        "ffn_hidden_size": 176,
        "num_attention_heads": 8,
        "num_query_groups": 4,
        "vocab_size": None,
        "max_position_embeddings": 64,
    },
    "optimizer": {"lr": 1e-3, "min_lr": 1e-4, "lr_warmup_iters": 2, "clip_grad": 1.0},
    "batch": {"seq_length": 32, "micro_batch_size": 2, "global_batch_size": 8, "train_iters": 14},
    "precision": "fp32",
}

BATCH = RECIPE["batch"]
SAVED = 10
"""Iteration after which a run of it is saved, besides its last."""
SHOWN = 8
"""Iterations of a run that nobody resumes: warm-up, clipping and decay are at work, and moments have a history."""
