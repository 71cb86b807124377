"""One plane by the loss-landscapes package, timed: run by surface.py with the Python that has that package.

    python surface_peer.py weights.pt data.pt STEPS

Prints JSON: processor seconds for each point, and the package's version. It imports nothing of ours but the net.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time

import loss_landscapes  # pyright: ignore[reportMissingImports]
import loss_landscapes.metrics  # pyright: ignore[reportMissingImports]
import torch
from resnets import ResNet

torch.set_num_threads(1)
model = ResNet()
model.load_state_dict(torch.load(sys.argv[1]))
x, y = torch.load(sys.argv[2])
steps = int(sys.argv[3])
metric = loss_landscapes.metrics.Loss(torch.nn.CrossEntropyLoss(), x, y)
begun = time.process_time()
loss_landscapes.random_plane(model.eval(), metric, distance=1, steps=steps, normalization="filter", deepcopy_model=True)
seconds = (time.process_time() - begun) / steps**2
print(json.dumps({"seconds": seconds, "version": importlib.metadata.version("loss-landscapes")}))
