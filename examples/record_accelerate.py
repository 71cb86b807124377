"""Record a loop of one's own with Accelerate: writes runs/accelerate/run.h5."""

import torch
from accelerate import Accelerator
from digits_task import digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from landscape import open_archive
from landscape.probes.integrations.accelerate import record  # pyright: ignore[reportMissingImports]

if __name__ == "__main__":
    torch.manual_seed(0)
    task = digits()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, optimizer, loader, held_out = accelerator.prepare(
        task.model,
        torch.optim.SGD(task.model.parameters(), lr=0.1, momentum=0.9),
        DataLoader(TensorDataset(*task.train), 32, shuffle=True),
        DataLoader(TensorDataset(*task.test), 64),
    )
    with record(accelerator, "runs/accelerate/run.h5", model, optimizer, facts={"batch_size": 64}, force=True) as rec:
        for _ in range(6):
            for x, y in loader:
                with accelerator.accumulate(model):
                    loss = nn.functional.cross_entropy(model(x), y)
                    rec.log(loss=loss)  # of each micro-batch: a row holds their mean
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
                    optimizer.zero_grad()
            with torch.no_grad():
                for x, y in held_out:
                    rec.observe(*accelerator.gather_for_metrics((model(x), y)))
            rec.end_epoch()

    history = open_archive("runs/accelerate/run.h5").history
    print(len(history["loss"].steps), "steps, loss", history["loss"].column("loss")[-3:])
    print("coefficient of clipping", history["clip"].column("coefficient")[-3:])
    print("calibration error after each epoch", history["calibration"].column("ece"))
