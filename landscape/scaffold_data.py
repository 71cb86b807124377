"""The lines of a task file that a guess gives for data and loss: shapes, targets, examples, the usual losses."""

from __future__ import annotations

from .checkpoints.guess import Guess

_PLACES = {"images": "height, width", "volumes": "depth, height, width", "signals": "length"}


def is_language_model(found: Guess) -> bool:
    """Whether each token is scored against the whole vocabulary."""
    return found.data == "tokens" and found.classes is not None and found.classes == found.inputs


def data_lines(found: Guess) -> list[str]:
    """Return the function that gives the data, to be filled in."""
    n = _PLACES.get(found.data)
    if n:
        x, kind = f"X (n, {found.inputs}, {n}) float32", "normalized as in training, without augmentation"
    elif found.data == "tokens":
        x, kind = f"X (n, length) int64, below {found.inputs}", "tokenized as in training"
    elif found.data == "sequences":
        x, kind = f"X (n, length, {found.inputs}) float32", "scaled as in training"
    elif found.data == "rows":
        x, kind = f"X (n, {found.inputs}) float32", "scaled as in training"
    else:
        x, kind = "X: the first dimension counts samples", "prepared as in training"
    dicts = "; for batches that are dicts, see forward= in help(landscape.Task):"
    if is_language_model(found):
        dicts = ", (X, y) or dicts with input_ids, attention_mask and labels:"
    return [
        "def data():",
        '    """The training and the held-out data."""',
        f"    # >>> fill in, {kind}. Each may be tensors (X, y), a Dataset,",
        f"    # a DataLoader, or a list of batches{dicts}",
        f"    #   {x}",
        *(f"    #   {line}" for line in _targets(found)),
        "    # for example:",
        *(f"    #   {line}" for line in _example(found)),
        "    #   return train, test",
        f'    raise NotImplementedError("fill in data(): {x}, and y")',
    ]


def _example(found: Guess) -> list[str]:
    pictures = f"datasets.{'MNIST' if found.inputs == 1 else 'CIFAR10'}('data', train=True, transform="
    if found.data == "images" and found.dense and found.rebuilds:
        return [
            "from torchvision import datasets, transforms",
            f"train = {pictures}transforms.ToTensor())",
            "X = torch.stack([x for x, _ in train])",
            "train = X, X  # where the model rebuilds X",
        ]
    if found.data == "images" and not found.dense:
        return [
            "from torchvision import datasets, transforms",
            "prepare = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])",
            f"train = {pictures}prepare)",
        ]
    if found.data == "rows":
        table = "table = torch.tensor(numpy.loadtxt('train.csv', delimiter=',', skiprows=1))"
        x = f"table[:, :{found.inputs}].float()"
        if found.rebuilds:
            return [table, f"X = {x}", "train = X, X"]
        column = "float()[:, None]" if found.classes == 1 else "long()"
        return [table, f"train = {x}, table[:, {found.inputs}].{column}"]
    return ["train = torch.load('train.pt')  # (X, y)"]


def _targets(found: Guess) -> list[str]:
    if is_language_model(found):
        return ["y (n, length) int64: X itself or the token that follows each, -100 where none counts"]
    if found.classes is None:
        return ["y: what the loss compares with"]
    n = f", {_PLACES[found.data]}" if found.dense else ""
    values, classes = f"y (n, {found.classes}{n}) float32", f"y (n{n or ','}) int64, below {found.classes}"
    if found.rebuilds:
        other = f"{values}: a mask of zeros and ones" if found.classes == 1 else f"{classes}, where it tells classes"
        return [f"{values}: X itself where the model rebuilds it, or", other]
    if found.classes == 1:
        return [values]
    several = found.data != "tokens" and not found.dense
    return [classes + f"; (n, {found.classes}) float32 for several labels at once" * several]


def loss_lines(found: Guess) -> tuple[str, list[str]]:
    """Return the loss's line in the Task, and further arguments."""
    if is_language_model(found):
        return "nn.functional.cross_entropy,", ["        forward=next_token,  # each position against the next label"]
    if found.rebuilds and found.classes != 1:
        return "nn.MSELoss(),  # >>> the loss of your training; nn.CrossEntropyLoss() for classes", []
    if found.dense and found.classes != 1:
        kept = "with ignore_index=, weight=; nn.MSELoss() for pictures"
        return f"nn.CrossEntropyLoss(),  # >>> the loss of your training, {kept}", []
    if found.classes == 1:
        return "nn.MSELoss(),  # >>> the loss of your training; nn.BCEWithLogitsLoss() for two classes", []
    if found.classes is None:
        return "nn.MSELoss(),  # >>> the loss of your training", []
    others = "nn.MSELoss() for regression, nn.BCEWithLogitsLoss() for several labels at once"
    return f"nn.CrossEntropyLoss(),  # >>> the loss of your training; {others}", []


#: In a Task's call: what takes the place of the loss's line where that needs more than outputs and targets.
WHOLE_BATCH = (
    "        # a loss that takes the batch whole (VAE, diffusion, contrastive) goes here instead of that line:",
    "        #   batch_loss=lambda model, batch: ...,  # the mean over its samples",
    '        #   rng="fixed",  # where it draws random numbers',
    "        #   rebatch=False,  # where the samples of a batch depend on each other",
)
