"""What helps a program that does not fit, the cheapest first."""

from lmsi_jax.decoding.layout import Decoding
from lmsi_jax.models.config import ModelConfig
from lmsi_jax.training.settings import Training


def for_training(config: ModelConfig, training: Training) -> list[str]:
    """Returns the settings of a training step that would lower its memory."""
    found = []
    if training.data > 1 and not training.fsdp:
        found.append("Training.fsdp = True: weights and state are spread over all chips")
    if config.remat != "layer":
        found.append("ModelConfig.remat = 'layer': keeps one input a layer, computes the rest anew")
    if not config.scan_layers:
        found.append("ModelConfig.scan_layers = True: one layer's buffers, used again and again")
    if training.compute_dtype != "bfloat16":
        found.append("Training.compute_dtype = 'bfloat16': half the bytes of states and products")
    if training.rows > training.data:
        rows = max(1, training.rows // training.data // 2) * training.data
        found.append(f"Training.rows = {rows}, more microbatches: the step's gradient is the same")
    if training.optimizer.name != "adafactor":
        found.append("Optimizer.name = 'adafactor': no second array of each weight's size")
    return [*found, _wider("Training", config, training.model), "a larger topology"]


def for_sampling(config: ModelConfig, decoding: Decoding) -> list[str]:
    """Returns the settings of a decode chunk that would lower its memory."""
    found = []
    if decoding.dtype != "bfloat16":
        found.append("Decoding.dtype = 'bfloat16': half the bytes of weights and caches")
    found.append(_wider("Decoding", config, decoding.model))
    if decoding.lanes > 1:
        found.append(f"Decoding.lanes = {decoding.lanes // 2}: half the paths' caches")
    if decoding.data > 1 and not decoding.fsdp:
        found.append("Decoding.fsdp = True: weights are gathered in every step, which is slow")
    return [*found, "a larger topology"]


def _wider(room: str, config: ModelConfig, model: int) -> str:
    """The next share of the heads that divides them."""
    for wider in range(model + 1, config.num_heads + 1):
        if config.num_heads % wider == 0 and wider % model == 0:
            return f"{room}.model = {wider}: heads, MLP and vocabulary in {wider} parts"
    return f"no wider {room}.model than {model}: there are {config.num_heads} heads"
