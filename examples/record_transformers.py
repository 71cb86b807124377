"""Record a training by Transformers' Trainer, of a tiny language model: writes runs/transformers/run.h5."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments
from transformers.utils import logging

from landscape import open_archive
from landscape.probes.integrations.transformers import RecorderCallback  # pyright: ignore[reportMissingImports]


def sequences(n: int, seed: int) -> list[dict[str, torch.Tensor]]:
    """Return sequences that count up by one, two or three, modulo 23."""
    draw = torch.Generator().manual_seed(seed)
    start, by = torch.randint(0, 23, (n, 1), generator=draw), torch.randint(1, 4, (n, 1), generator=draw)
    tokens = (start + by * torch.arange(10)) % 23
    return [{"input_ids": row, "labels": row} for row in tokens]


if __name__ == "__main__":
    logging.set_verbosity_error()
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=23, n_positions=16, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
    )
    arguments = TrainingArguments(
        "runs/transformers", num_train_epochs=4, per_device_train_batch_size=32, learning_rate=1e-2, use_cpu=True,
        eval_strategy="epoch", save_strategy="no", report_to=[], disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=sequences(512, 0), eval_dataset=sequences(128, 1))
    RecorderCallback("runs/transformers/run.h5", force=True).attach(trainer)
    trainer.train()

    history = open_archive("runs/transformers/run.h5").history
    print("loss of each step", history["loss"].column("loss")[-3:])
    print("gradient norm before clipping", history["gradient_norm_before"].column("global")[-3:])
    print("calibration error of the next token", history["calibration"].column("ece"))
