"""What is wrong with a checkpoint, and what to do about it."""

from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from lmsi_jax.errors import LmsiError

UNFINISHED = ".orbax-checkpoint-tmp"
LAYOUT = "a folder checkpoint_N with an Orbax item 'state' that holds a tree 'target'"


def damaged(folder: epath.Path, error: Exception, others: Sequence[int]) -> LmsiError:
    """Returns the error of a checkpoint that cannot be read.

    Args:
      folder: the checkpoint.
      error: what reading it raised.
      others: steps of other checkpoints beside it.
    """
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    if isinstance(error, AttributeError):  # Orbax gives None for what it cannot read
        reason = "its _METADATA cannot be read"
    rest = f"; step {max(others)} is there too, and would be next" if others else ""
    return LmsiError(
        f"the checkpoint {folder} is incomplete or damaged ({reason}); delete it and repeat the "
        f"command, or name another{rest}"
    )


def seen(folder: epath.Path) -> str:
    """Says what stands in a folder where a checkpoint was looked for, and what it looks like."""
    if not folder.exists():
        return "there is no such folder"
    if not folder.is_dir():
        return f"it is a file, expected {LAYOUT}"
    names = sorted(child.name for child in folder.iterdir())
    if not names:
        return f"the folder is empty, expected {LAYOUT}"
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return f"found {shown}{_meaning(names)}; expected {LAYOUT}"


def _meaning(names: Sequence[str]) -> str:
    if any(UNFINISHED in name for name in names):
        return " (a save that was cut off before it was whole)"
    if "checkpoint" in names:
        return " (T5X's old format: open and save it with T5X, which writes Orbax now)"
    if any(name.endswith((".safetensors", ".bin")) for name in names):
        return " (a Hugging Face model: run `lmsi import-hf` on it first)"
    if "default" in names or "_METADATA" in names or "manifest.ocdbt" in names:
        return " (an Orbax tree of other names: save it as the item 'state' with a tree 'target')"
    return ""


def check_match(folder: epath.Path, wanted: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Compares names and shapes.

    Args:
      folder: the checkpoint.
      wanted: arrays or shapes by name.
      saved: what the checkpoint has.

    Raises:
      LmsiError: the model is another, or the optimiser.
    """
    missing = sorted(set(wanted) - set(saved), key=lambda name: (name[:6] != "target", name))
    if missing:
        what, remedy, prefix = _owner(missing[0])
        extra = sorted(name for name in set(saved) - set(wanted) if name.startswith(prefix))
        raise LmsiError(
            f"the checkpoint {folder} belongs to another {what}: it has no "
            f"{missing[0].removeprefix(prefix)!r}"
            + (f" but has {extra[0].removeprefix(prefix)!r}" if extra else "")
            + f"; {remedy}, or name another checkpoint"
        )
    for name, leaf in wanted.items():
        found = tuple(getattr(saved[name], "shape", None) or ())
        if found != tuple(leaf.shape):
            what, remedy, prefix = _owner(name)
            raise LmsiError(
                f"the checkpoint {folder} belongs to another {what}: "
                f"{name.removeprefix(prefix)} is {found}, "
                f"{'ModelConfig' if what == 'model' else 'the run'} wants {tuple(leaf.shape)}; "
                f"{remedy}, or name another checkpoint"
            )


def _owner(name: str) -> tuple[str, str, str]:
    """What an array belongs to, how to mend it, and what its name begins with in the file."""
    if name.startswith("target."):
        return "model", "set ModelConfig to its shape", "target."
    return "optimiser", "set Optimizer as it was", "state.param_states."
