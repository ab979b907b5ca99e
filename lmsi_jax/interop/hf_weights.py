"""Convert a Hugging Face model folder or a GGUF file to a checkpoint of `lmsi`.

Our matrices are [in, out]; torch's `Linear.weight` is [out, in]. Heads have the same order and
rotary positions pair the same dimensions, so nothing else is rearranged. One tensor at a time is in
memory. `import_model` writes:

    OUT/checkpoint_0/     the layout of lmsi and T5X
    OUT/tokenizer/        tokenizer.json or tokenizer.model with its settings
    OUT/model.gin         ModelConfig, Run.init_checkpoint, Run.tokenizer and how it is prompted
    OUT/model.json        the same ModelConfig, for programs

The folder appears only once it is complete. `hf_export` is the way back.
"""

import dataclasses
import functools
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from lmsi_jax.config import ModelConfig
from lmsi_jax.errors import LmsiError
from lmsi_jax.interop.chat_prompts import choose_prompting
from lmsi_jax.interop.gguf_file import GgufModel, is_gguf, split_files
from lmsi_jax.interop.gguf_metadata import byte_level_parts, start_with
from lmsi_jax.interop.hf_config import (
    Note,
    family_of,
    ignored_keys,
    is_multimodal,
    model_config,
)
from lmsi_jax.interop.hf_families import Tensor, fused_tensors, tensors, text_tensor, unwrapped
from lmsi_jax.interop.hf_shards import (
    DTYPES,
    INDEX,
    SINGLE,
    SLICE_BYTES,
    Adapters,
    Dtype,
    Shards,
    cast,
    is_adapter_folder,
    read_adapter_config,
    read_tensor,
)
from lmsi_jax.models.tokenizers import (
    SENTENCEPIECE,
    TOKENIZER_JSON,
    open_tokenizer,
    read_settings,
)
from lmsi_jax.runtime.files import (
    check_regular,
    new_folder,
    parse_json,
    read_bytes,
    system_errors,
    write_json,
)
from lmsi_jax.training import streaming

# Files that transformers reads with a tokenizer; generation_config.json has the end of texts.
TOKENIZER_FILES = (
    *(TOKENIZER_JSON, SENTENCEPIECE, "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja"),
    "generation_config.json",
)
# Computed when needed; older files store it.
_DERIVED = ("rotary_emb.inv_freq",)


def import_model(
    source: Path,
    out: Path,
    dtype: Dtype = "keep",
    note: Note = lambda line: None,
    base: Path | None = None,
) -> ModelConfig:
    """Converts a Hugging Face model or a GGUF file to a checkpoint.

    Args:
      source: a folder with config.json, safetensors files and the tokenizer; a GGUF file, any one
        of the files of a split GGUF model, or a folder whose only model is in such files; a folder
        with PEFT's adapters, which are merged; or the name of a folder on Hugging Face's hub.
      out: the folder to create.
      dtype: the type of the parameters in the checkpoint; "keep" for that of the files.
      note: called with a line on each thing that is left out, or that two files disagree on.
      base: the model that adapters belong to; None for the one that their settings name.

    Returns:
      The shape of the model.

    Raises:
      LmsiError: something is missing, damaged, unsupported or does not fit; `out` is not created.
    """
    shards: Shards | GgufModel
    listed: set[int] = set()
    raw: Mapping[str, Any] = {}
    source = find_model(source)
    adapters = source if source.is_dir() and is_adapter_folder(source) else None
    if adapters is not None:
        source = _base_of(adapters, base)
    elif base is not None:
        raise LmsiError(f"--base is for adapters, and {source} has no adapter_config.json")
    if file := _gguf_file_of(source):
        if adapters is not None:
            raise LmsiError(
                f"{adapters} cannot be merged into {file}; name the base model's Hugging Face "
                "folder with --base=MODEL"
            )
        shards = GgufModel(file)
        try:
            config = model_config(shards.config)
        except LmsiError as error:
            raise LmsiError(f"{file}, its metadata written as config.json: {error}") from None
    else:
        raw, config = _read_config(source, note)
        shards = _open_shards(source, raw, config, adapters, note)
        listed = _listed_ends(source, raw, note)
    expected = tensors(config)
    _check_source(source, shards, expected, config)
    with new_folder(out) as folder:
        texts = source
        if adapters and any((adapters / name).exists() for name in (TOKENIZER_JSON, SENTENCEPIECE)):
            texts = adapters  # with the tokens and the template of their training
        stated = raw.get("eos_token_id")
        _import_tokenizer(texts, shards, folder / "tokenizer", config, stated, note)
        own_end = open_tokenizer(folder / "tokenizer").eos_id
        if listed and own_end not in listed:
            note(
                f"a text also ends at {own_end}, the tokenizer's eos_token; transformers continues "
                f"there, for generation_config.json lists {sorted(listed)}"
            )
        with system_errors(out):
            streaming.save(folder, 0, _tree(source, shards, expected, dtype))
        prompting = choose_prompting(folder / "tokenizer", note)
        (folder / "model.gin").write_text(gin_text(config, source, out, prompting))
        write_json(folder / "model.json", dataclasses.asdict(config))
    return config


_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*(@[\w.-]+)?")
_HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*.model", "*.txt", "*.jinja", "*.json"]


def find_model(source: Path) -> Path:
    """Returns the folder or file of a model; one on the hub is downloaded to its cache.

    Args:
      source: a path, or "owner/name" or "owner/name@revision" on Hugging Face's hub if there is no
        such path.

    Raises:
      LmsiError: the library huggingface_hub is missing, or the hub does not give the model.
    """
    if source.exists() or source.is_symlink() or not _HUB_NAME.fullmatch(str(source)):
        return source
    try:
        import huggingface_hub
    except ImportError:
        raise LmsiError(
            f"{source} is no folder and no file here; to take it for a name on Hugging Face's hub, "
            "pip install huggingface_hub"
        ) from None
    name, _, revision = str(source).partition("@")
    try:
        folder = huggingface_hub.snapshot_download(
            name, revision=revision or None, allow_patterns=_HUB_FILES
        )
    # Among others the library raises the errors of its HTTP client, which changes by version.
    except Exception as error:
        raise LmsiError(
            f"{source} is no folder and no file here, and Hugging Face's hub does not give a model "
            f"of this name ({type(error).__name__}: {' '.join(str(error).split())[:200]}); "
            "check name and network, log in with `hf auth login` if it is gated, or name a folder"
        ) from error
    return Path(folder)


def _base_of(adapters: Path, base: Path | None) -> Path:
    """Returns the folder of the model that adapters belong to.

    Raises:
      LmsiError: it is not there.
    """
    named = read_adapter_config(adapters).get("base_model_name_or_path")
    if base is None and not isinstance(named, str):
        raise LmsiError(
            f"{adapters / 'adapter_config.json'} names no base model; name it with --base=MODEL"
        )
    try:
        folder = find_model(base or Path(str(named)))
    except LmsiError as error:
        raise LmsiError(f"the base model of {adapters}: {error}, with --base=FOLDER") from None
    if not folder.exists():
        raise LmsiError(
            f"{adapters} is adapters of the model {str(folder)!r}, which is not there; name its "
            "folder with --base=MODEL"
        )
    return folder


def _gguf_file_of(source: Path) -> Path | None:
    """Returns the (first) GGUF file of a source, None for a folder of another format.

    Raises:
      LmsiError: the source is another file, or a folder with several GGUF models.
    """
    if source.is_file():
        if source.suffix == ".gguf" or is_gguf(source):
            return source
        raise LmsiError(f"{source} is no folder and no GGUF file; name one of a downloaded model")
    if not source.is_dir():
        raise LmsiError(f"{source} is no folder and no file; name those of a downloaded model")
    if any((source / name).exists() for name in (SINGLE, INDEX)):
        return None
    models = {split_files(file)[0] for file in sorted(source.glob("*.gguf"))}
    if len(models) > 1:
        names = ", ".join(sorted(file.name for file in models))
        raise LmsiError(f"{source} has several GGUF models, {names}; name the file of one")
    return models.pop() if models else None


def _read_config(source: Path, note: Note) -> tuple[dict[str, Any], ModelConfig]:
    file = source / "config.json"
    if not file.exists():
        raise LmsiError(f"{source} has no config.json; name the folder of a downloaded model")
    try:
        raw = parse_json(read_bytes(file))
    except (OSError, ValueError) as error:
        raise LmsiError(f"{file} cannot be read: {error}; download it again") from None
    if not isinstance(raw, dict):
        raise LmsiError(f"{file} is no object; download it again")
    try:
        config = model_config(raw, note)
    except LmsiError as error:
        raise LmsiError(str(error).replace("config.json", str(file), 1)) from None
    if ignored := ignored_keys(raw):
        note(f"ignored in config.json, they change no score: {', '.join(ignored)}")
    return raw, config


def _listed_ends(source: Path, raw: Mapping[str, Any], note: Note) -> set[int]:
    """Returns each `eos_token_id` of a folder's generation_config.json.

    Raises:
      LmsiError: one there or in config.json is no number.
    """

    def ends(name: str, settings: Mapping[str, Any]) -> set[int]:
        value = settings.get("eos_token_id")
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if any(type(number) is not int for number in ids):
            raise LmsiError(
                f"{source / name}: eos_token_id = {value!r}; it must be a number or a list of "
                "numbers: download it again"
            )
        return set(ids)

    name = "generation_config.json"
    stated = ends("config.json", raw)
    listed = ends(name, read_settings(epath.Path(source / name)))
    if listed and stated - listed:
        note(
            f"config.json's eos_token_id {sorted(stated - listed)} does not end a text: {name} "
            f"lists {sorted(listed)}, and counts, as in transformers"
        )
    return listed


def _open_shards(
    source: Path, raw: dict[str, Any], config: ModelConfig, adapters: Path | None, note: Note
) -> Shards:
    """Returns a folder's tensors under the names of `tensors`, with adapters merged.

    Raises:
      LmsiError: see `Shards` and `Adapters`.
    """
    if all((source / name).exists() for name in (SINGLE, INDEX)):
        note(f"{SINGLE} is read, and {INDEX} beside it is not, as in transformers")
    rename = text_tensor if is_multimodal(raw) else unwrapped
    lora = None
    if adapters is not None:
        lora = Adapters(adapters, rename)
        note(f"the adapters of {adapters} are merged into {source}")
    shards = Shards(source, rename, lora)
    if family_of(raw).fused:
        for name, parts in fused_tensors(config):
            shards.split(name, {part.name: part.shape[0] for part in parts})
    return shards


def _check_source(
    source: Path, shards: Shards | GgufModel, expected: list[Tensor], config: ModelConfig
) -> None:
    """Compares names, shapes and types of a model's tensors with its configuration.

    Raises:
      LmsiError: names the first tensor that does not fit.
    """
    described, remedy = "config.json", "take the config.json that belongs to the checkpoint"
    if isinstance(shards, GgufModel):
        described, remedy = "its metadata", "take a file that a current llama.cpp converted"
    names = {tensor.name for tensor in expected}
    missing = [tensor.name for tensor in expected if tensor.name not in shards.shapes]
    if missing:
        raise LmsiError(
            f"{source} has no tensor {missing[0]!r} ({len(missing)} are missing), which "
            f"{described} asks for; {_remedy(missing[0], remedy)}"
        )
    for name in shards.names:
        if name in names or name.endswith(_DERIVED):
            continue
        if name == "lm_head.weight" and config.tied_embeddings:
            _check_tied(source, shards)
            continue
        raise LmsiError(
            f"{source} has a tensor {name!r} that {described} does not ask for; {remedy}"
        )
    for tensor in expected:
        if shards.shapes[tensor.name] != tensor.shape:
            raise LmsiError(
                f"{source}: {tensor.name} is {shards.shapes[tensor.name]}, {described} has "
                f"{tensor.shape}; {remedy}"
            )
        if shards.dtypes[tensor.name] not in DTYPES:
            raise LmsiError(
                f"{source}: {tensor.name} has the type {shards.dtypes[tensor.name]}; only "
                f"{', '.join(DTYPES)} are read: {_remedy_of_type(shards.dtypes[tensor.name])}"
            )


def _remedy_of_type(kind: str) -> str:
    if kind == "F64":
        return "save it in one of these types"
    return "take the model that is not quantised"


def _remedy(name: str, remedy: str) -> str:
    if name == "lm_head.weight":
        return "set tie_word_embeddings to true if it scores tokens with its embeddings"
    return remedy


def _check_tied(source: Path, shards: Shards | GgufModel) -> None:
    """Checks that the output table is a copy of the embeddings, which is not imported.

    Raises:
      LmsiError: the tables differ.
    """
    same, table = "model.embed_tokens.weight", "lm_head.weight"
    alike = shards.shapes[table] == shards.shapes[same] and all(
        np.array_equal(a, b) for a, b in zip(shards.slices(table), shards.slices(same), strict=True)
    )
    if not alike:
        raise LmsiError(
            f"{source}: {table} is not {same}, though config.json has tie_word_embeddings = true; "
            "set it to false to keep the table"
        )


def _tree(
    source: Path, shards: Shards | GgufModel, expected: list[Tensor], dtype: Dtype
) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for tensor in expected:
        kind = cast(DTYPES[shards.dtypes[tensor.name]], dtype)
        level = tree
        for key in tensor.path[:-1]:
            level = level.setdefault(key, {})
        level[tensor.path[-1]] = streaming.Later(
            shape=tensor.shape[::-1] if tensor.transposed else tensor.shape,
            dtype=kind,
            make=functools.partial(_read_finite, source, shards, tensor, kind),
        )
    return tree


def _read_finite(
    source: Path, shards: Shards | GgufModel, tensor: Tensor, dtype: np.dtype
) -> np.ndarray:
    """Returns the values of a parameter.

    Raises:
      LmsiError: one is NaN or infinite.
    """
    values = read_tensor(shards, tensor.name, dtype, tensor.transposed)
    rows = max(1, SLICE_BYTES // max(1, values.nbytes // len(values)))
    for begin in range(0, len(values), rows):
        if not np.isfinite(values[begin : begin + rows]).all():
            raise LmsiError(
                f"{source}: {tensor.name} has NaN or infinite values in {dtype}; "
                "download it again, and if they are there again, take another model"
            )
    return values


def _import_tokenizer(
    source: Path,
    shards: Shards | GgufModel,
    folder: Path,
    config: ModelConfig,
    ends: int | list[int] | None,
    note: Note,
) -> None:
    """Writes the files of a tokenizer and checks that it can be opened.

    Args:
      source: the model.
      shards: its tensors.
      folder: the folder to create.
      config: the model's shape.
      ends: `eos_token_id` of config.json, which holds if there is no generation_config.json.
      note: called with a line on what is left out.

    Raises:
      LmsiError: there are no such files, or they belong to another model.
    """
    try:
        folder.mkdir()
        if isinstance(shards, GgufModel):
            for name, text in shards.tokenizer_files().items():
                (folder / name).write_text(text, encoding="utf-8")
        else:
            for name in TOKENIZER_FILES:
                if (source / name).exists():
                    check_regular(source / name)
                    shutil.copyfile(source / name, folder / name)
            if not any((folder / name).exists() for name in (TOKENIZER_JSON, SENTENCEPIECE)):
                write_bpe_tokenizer(folder)
        if not any((folder / name).exists() for name in (TOKENIZER_JSON, SENTENCEPIECE)):
            raise LmsiError(
                f"{source} has no {TOKENIZER_JSON} and no {SENTENCEPIECE}, nor vocab.json with "
                "merges.txt; put the model's tokenizer there"
            )
        settings = folder / "generation_config.json"
        if ends is not None and not settings.exists():
            write_json(settings, {"eos_token_id": ends})
        if dropped := _drop_tokens_beyond(folder / TOKENIZER_JSON, config.vocab_size):
            note(
                f"left out of the tokenizer, the model has no row for them: {', '.join(dropped)} "
                "(control tokens that no text contains)"
            )
        ids = open_tokenizer(str(folder)).vocab_size
        if ids > config.vocab_size:
            gguf = isinstance(shards, GgufModel)
            rows = "token_embd.weight's number of rows" if gguf else "config.json's vocab_size"
            raise LmsiError(
                f"the tokenizer of {source} has {ids} ids, {rows} is "
                f"{config.vocab_size}; take the tokenizer that belongs to the checkpoint"
            )
    except LmsiError as error:  # about the copy, which is not there any more
        raise LmsiError(str(error).replace(str(folder), str(source))) from None


# The class in tokenizer_config.json, without its ending -> how it cuts texts into words.
_BPE_CLASSES = {"Qwen2Tokenizer": "qwen2", "GPT2Tokenizer": "gpt-2"}


def write_bpe_tokenizer(folder: Path) -> None:
    """Writes the tokenizer.json of a folder with vocab.json and merges.txt, if it has those.

    It encodes as transformers' class does that tokenizer_config.json names.

    Raises:
      LmsiError: the class is not a supported one, or a file is damaged.
    """
    files = folder / "vocab.json", folder / "merges.txt"
    if not all(file.exists() for file in files):
        return
    settings = read_settings(folder / "tokenizer_config.json")
    name = str(settings.get("tokenizer_class")).removesuffix("Fast")
    if name not in _BPE_CLASSES:
        raise LmsiError(
            f"{folder / 'tokenizer_config.json'}: tokenizer_class = "
            f"{settings.get('tokenizer_class')!r}; of folders without {TOKENIZER_JSON} only "
            f"{', '.join(_BPE_CLASSES)} are read: AutoTokenizer's save_pretrained writes it"
        )
    vocabulary = read_settings(files[0])
    lines = files[1].read_text(encoding="utf-8").split("\n")
    merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    if not all(type(i) is int for i in vocabulary.values()) or any(len(m) != 2 for m in merges):
        raise LmsiError(f"{files[0]} or {files[1].name} is damaged; download them again")
    added = _added_tokens(folder, settings, vocabulary)
    start = settings.get("bos_token", "<|endoftext|>") if settings.get("add_bos_token") else None
    start = start.get("content") if isinstance(start, dict) else start
    ids = vocabulary | {token["content"]: token["id"] for token in added}
    parts = byte_level_parts(
        _BPE_CLASSES[name],
        vocabulary,
        merges,
        prefix_space=bool(settings.get("add_prefix_space")),
    )
    spec = {
        **{"version": "1.0", "truncation": None, "padding": None, "added_tokens": added},
        "post_processor": start_with(start, ids[start]) if start and start in ids else None,
        **parts,
    }
    (folder / TOKENIZER_JSON).write_text(json.dumps(spec, ensure_ascii=False), encoding="utf-8")


def _added_tokens(
    folder: Path, settings: Mapping[str, Any], vocabulary: Mapping[str, int]
) -> list[dict[str, Any]]:
    """Returns the added tokens of tokenizer.json, from the older settings files."""
    listed = settings.get("added_tokens_decoder") or {}
    texts = {
        int(number): token
        for number, token in listed.items()
        if number.isdigit() and isinstance(token, dict) and isinstance(token.get("content"), str)
    }
    for text, number in read_settings(folder / "added_tokens.json").items():
        if type(number) is int:
            texts.setdefault(number, {"content": text})
    names = {**read_settings(folder / "special_tokens_map.json"), **settings}
    names.setdefault("eos_token", "<|endoftext|>")
    special = [names.get(f"{name}_token") for name in ("bos", "eos", "unk", "pad")]
    special += names.get("additional_special_tokens") or []
    contents = {one["content"] if isinstance(one, dict) else one for one in special if one}
    for content in contents & vocabulary.keys():
        texts.setdefault(vocabulary[content], {"content": content})
    added = []
    for number, token in sorted(texts.items()):
        kept = {key: bool(token.get(key)) for key in ("single_word", "lstrip", "rstrip")}
        is_special = bool(token.get("special", token["content"] in contents))
        normalized = bool(token.get("normalized", not is_special))
        kept |= {"normalized": normalized, "special": is_special}
        added.append({"id": number, "content": token["content"], **kept})
    return added


def _drop_tokens_beyond(file: Path, rows: int) -> list[str]:
    """Removes control tokens without a row in the table from a tokenizer.json.

    Gemma 3's text models have one for images, for example. Starts and ends of texts are kept.

    Returns:
      Their texts.
    """
    if not file.exists():
        return []
    tokenizer = open_tokenizer(str(file))
    if tokenizer.vocab_size <= rows:
        return []
    used = {*tokenizer.start_ids, *tokenizer.end_ids}
    spec = json.loads(file.read_bytes())
    beyond = [
        token
        for token in spec["added_tokens"]
        if token["special"] and token["id"] >= rows and token["id"] not in used
    ]
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token not in beyond]
    file.write_text(json.dumps(spec, ensure_ascii=False), encoding="utf-8")
    return [token["content"] for token in beyond]


def gin_text(config: ModelConfig, source: Path, out: Path, prompting: str = "") -> str:
    """Returns the text of a model's gin file, to be included or passed as --gin_file.

    Args:
      config: its shape.
      source: where it comes from.
      out: where it is.
      prompting: the packaged gin file that says how it is prompted, "" for none.
    """
    lines = [
        f"# {source.name}, by `lmsi import-hf`: {config.parameter_count:,} parameters.",
        "#",
        "#   lmsi run CONFIG --gin_file=OUT/model.gin",
        "",
        *([f"include {prompting!r}", ""] if prompting else []),
    ]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            kind = type(value).__name__
            lines += [
                f"{kind}.{part.name} = {getattr(value, part.name)!r}"
                for part in dataclasses.fields(value)
                if part.init
            ]
            lines.append(f"ModelConfig.{field.name} = @{kind}()")
        else:
            lines.append(f"ModelConfig.{field.name} = {value!r}")
    lines += [
        "",
        "Run.model = @ModelConfig()",
        f"Run.init_checkpoint = {str(out.resolve())!r}",
        f"Run.tokenizer = {str(out.resolve() / 'tokenizer')!r}",
    ]
    return "\n".join(lines) + "\n"
