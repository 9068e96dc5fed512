"""Networks of Hugging Face folders: the class from transformers, the weights from Stemma's own reader.

Only transformers' own classes are built, from the configuration next to the weights: code in the folder is never
imported, nothing is downloaded, and attention is the eager implementation.
"""

import inspect
import json
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stemma.checkpoints.model import Model
from stemma.errors import MissingExtraError, UnreadableModelError
from stemma.networks import preprocessing, tokenizer
from stemma.networks.loading import check_tensors, torch_state
from stemma.networks.preprocessing import Preprocessing
from stemma.types import InputSpec
from stemma.types.network import Network, network_digest

if TYPE_CHECKING:
    import torch

Forward = Callable[["torch.Tensor"], Any]

AUTO_CLASSES = (
    "AutoModelForImageClassification", "AutoModelForSequenceClassification", "AutoModelForCausalLM",
    "AutoModelForMaskedLM", "AutoModelForAudioClassification", "AutoModelForCTC", "AutoModel",
)  # fmt: skip
"""Tried in this order if the configuration names no class; the first that fits the weights is used."""

IGNORED_FIELDS = frozenset(
    {"auto_map", "quantization_config", "_name_or_path", "attn_implementation", "_attn_implementation",
     "_attn_implementation_internal", "experts_implementation", "_experts_implementation",
     "_experts_implementation_internal", "use_kernels", "torch_dtype", "dtype", "transformers_version"}
)  # fmt: skip
"""Fields of a configuration about code, kernels or packing, not about the function."""

UNLIMITED_LENGTH = 1 << 20
"""Token limit if the configuration sets none."""

OFFSET_POSITIONS = frozenset(
    {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "roberta-prelayernorm", "longformer"}
)
"""Architectures that count positions from after the padding token."""


def open_hugging_face(model: Model) -> Network:
    """The network of a checkpoint folder with a transformers configuration, in evaluation mode."""
    transformers = _transformers()
    config = {k: v for k, v in (model.config or {}).items() if k not in IGNORED_FIELDS}
    with _offline_and_quiet(transformers):
        settings = _settings(transformers, model, config)
        module = _load_module(transformers, model, settings)
    folder = Path(model.source)
    folder = folder if folder.is_dir() else folder.parent
    preprocessor = preprocessing.read_preprocessor(folder)
    code = f"transformers:{type(module).__name__}"
    content = json.dumps([config, preprocessor], sort_keys=True)
    parameters = str(module.main_input_name)
    if parameters == "input_ids":
        return _token_network(model, module, folder, code, content)
    inputs = _input_preprocessing(parameters, config, settings, preprocessor)
    from stemma.networks.normalization import Normalised

    answer = Normalised(
        _forward_of(module, parameters), inputs.spec, flip_channels=inputs.flip_channels, per_input=inputs.per_input
    )
    digest = network_digest(model.digest, code, content, inputs.spec)
    return Network(model.name, digest, inputs.spec, answer, module, scores=has_head(module))


def _transformers() -> Any:
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("building a network", "torch", "networks") from error
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError("building the network of a Hugging Face folder", "transformers", "hf") from error
    return transformers


@contextmanager
def _offline_and_quiet(transformers: Any) -> Generator[None]:
    # no network access; no warnings or progress bars of transformers
    from huggingface_hub import constants

    log = transformers.utils.logging
    offline, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    before, bar = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity(log.CRITICAL)
    log.disable_progress_bar()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline
        log.set_verbosity(before)
        if bar:
            log.enable_progress_bar()


def _settings(transformers: Any, model: Model, config: Mapping[str, Any]) -> Any:
    kind = config.get("model_type")
    if kind not in transformers.CONFIG_MAPPING:
        raise UnreadableModelError(
            f"{model.name} has the model_type {kind!r}, which transformers {transformers.__version__} does not "
            "support. Provide the network with --network MODULE:FACTORY --allow-code"
        )
    try:
        return transformers.CONFIG_MAPPING[kind].from_dict(_drop_ignored(config))
    except Exception as error:  # architectures raise different errors
        raise UnreadableModelError(
            f"the config.json of {model.name} is not a valid {kind} configuration: {_one_line(error)}. Correct it"
        ) from error


def _drop_ignored(config: Mapping[str, Any]) -> dict[str, Any]:
    # also in nested configurations; no part downloads weights
    kept = {k: _drop_ignored(v) if isinstance(v, Mapping) else v for k, v in config.items() if k not in IGNORED_FIELDS}
    return {**kept, **{k: False for k in ("use_pretrained_backbone", "use_timm_backbone") if kept.get(k)}}


def read_settings(model: Model, config: Mapping[str, Any]) -> Any:
    """A configuration as transformers reads it; `UnreadableModelError` if it does not know it."""
    transformers = _transformers()
    with _offline_and_quiet(transformers):
        return _settings(transformers, model, {k: v for k, v in config.items() if k not in IGNORED_FIELDS})


def build_unfilled(model: Model, config: Mapping[str, Any]) -> "torch.nn.Module":
    """The module of a configuration as it is made, without the model's weights; its class as for the folder."""
    transformers = _transformers()
    settings = read_settings(model, config)
    named = [n for n in config.get("architectures") or () if isinstance(n, str)]
    known = [a._model_mapping[type(settings)] for a in (getattr(transformers, n) for n in AUTO_CLASSES)
             if type(settings) in a._model_mapping]  # fmt: skip
    module_class = getattr(transformers, named[0], None) if named else known[0] if known else None
    module_class = module_class[0] if isinstance(module_class, tuple) else module_class
    if not (inspect.isclass(module_class) and issubclass(module_class, transformers.PreTrainedModel)):
        raise UnreadableModelError(
            f"{model.name} names no class of transformers {transformers.__version__}. Add it under 'architectures' in "
            "config.json"
        )
    with _offline_and_quiet(transformers):
        try:
            return module_class(settings)
        except Exception as error:  # architectures raise different errors
            raise UnreadableModelError(
                f"{model.name} cannot be built as {module_class.__name__}: {_one_line(error)}"
            ) from error


def describe_tokens(model: Model, module: Any, folder: Path) -> Network:
    """The network of a text module whose weights are not read: it tells its input space and tokenizer."""
    return _token_network(
        model, module, folder, f"transformers:{type(module).__name__}", module.config.to_json_string()
    )


def _load_module(transformers: Any, model: Model, settings: Any) -> "torch.nn.Module":
    weights = torch_state(model)
    named = [n for n in (model.config or {}).get("architectures") or () if isinstance(n, str)]
    if named:
        module_class = getattr(transformers, named[0], None)
        if not (inspect.isclass(module_class) and issubclass(module_class, transformers.PreTrainedModel)):
            own = " Code in the checkpoint folder is never run." if (model.config or {}).get("auto_map") else ""
            raise UnreadableModelError(
                f"{model.name} is a {named[0]}, which transformers {transformers.__version__} does not support.{own} "
                "Provide the network with --network MODULE:FACTORY --allow-code"
            )
        return _instantiate(module_class, model, settings, weights)
    failed: UnreadableModelError | None = None
    for auto in (getattr(transformers, name) for name in AUTO_CLASSES):
        if type(settings) not in auto._model_mapping:
            continue
        module_class = auto._model_mapping[type(settings)]
        try:
            return _instantiate(
                module_class[0] if isinstance(module_class, tuple) else module_class, model, settings, weights
            )
        except UnreadableModelError as error:
            failed = error
    raise failed or UnreadableModelError(
        f"{model.name} is a {settings.model_type} with an unknown head. Add its class name under 'architectures' "
        "in config.json"
    )


def _instantiate(
    module_class: Any, model: Model, settings: Any, weights: "Mapping[str, torch.Tensor]"
) -> "torch.nn.Module":
    import torch

    dtype = torch.float64 if any(t.dtype == torch.float64 for t in weights.values()) else torch.float32
    try:
        module, report = module_class.from_pretrained(
            None, config=settings, state_dict=dict(weights), dtype=dtype, attn_implementation="eager",
            local_files_only=True, ignore_mismatched_sizes=True, output_loading_info=True,
        )  # fmt: skip
    except Exception as error:  # architectures raise different errors
        raise UnreadableModelError(
            f"{model.name} cannot be loaded as {module_class.__name__}: {_one_line(error)}"
        ) from error
    shapes = {name[0] if isinstance(name, tuple) else name for name in report["mismatched_keys"]}
    check_tensors(model.name, report["missing_keys"], _unexpected_in_trunk(module, report["unexpected_keys"]), shapes)
    return module.eval()


def _unexpected_in_trunk(module: Any, unexpected: set[str]) -> set[str]:
    # a head of another task does not affect the output of this class
    trunk = f"{module.base_model_prefix}."
    if any(name.startswith(trunk) for name in module.state_dict()):
        return {name for name in unexpected if name.startswith(trunk)}
    return unexpected


def _input_preprocessing(
    name: str, config: Mapping[str, Any], settings: Any, preprocessor: Mapping[str, Any]
) -> Preprocessing:
    if name == "pixel_values":
        return preprocessing.image_preprocessing(config, settings, preprocessor)
    if name == "input_values":
        return preprocessing.audio_preprocessing(settings, preprocessor)
    bins, positions = getattr(settings, "num_mel_bins", 0), getattr(settings, "max_source_positions", 0)
    return Preprocessing(InputSpec("tensor", (int(bins or 0), 2 * int(positions or 0)), -1.0, 1.0))


def _forward_of(module: Any, name: str) -> Callable[["torch.Tensor"], Any]:
    """The module as a function of its one input; for an encoder-decoder, the logits of the first token."""
    import torch

    parameters = inspect.signature(module.forward).parameters
    settings = module.config
    start = getattr(settings, "decoder_start_token_id", None)
    decodes = (
        getattr(settings, "is_encoder_decoder", False) and start is not None and "Generation" in type(module).__name__
    )
    fixed = {"use_cache": False} if "use_cache" in parameters else {}

    def forward(x: "torch.Tensor") -> Any:
        if not decodes:
            return module(**{name: x}, **fixed)
        first = torch.full((len(x), 1), int(start or 0), device=x.device)
        return module(**{name: x}, **fixed, decoder_input_ids=first)

    return forward


def has_head(module: Any) -> bool:
    """Whether a module of transformers has a head; the trunk alone answers with hidden states."""
    return getattr(module, "base_model", None) is not module


def is_token_module(module: Any) -> bool:
    """Whether a module is one of transformers that takes token ids."""
    transformers = sys.modules.get("transformers")  # a module of it cannot be there before it is imported
    known = getattr(transformers, "PreTrainedModel", None)
    return known is not None and isinstance(module, known) and module.main_input_name == "input_ids"


def token_network(model: Model, module: Any, code: str) -> Network:
    """The network of a text module that was made in memory: as that of its folder, but its tokenizer is unknown."""
    return _token_network(model, module, None, code, module.config.to_json_string())


def _token_network(model: Model, module: Any, folder: Path | None, code: str, content: str) -> Network:
    import torch

    settings = module.config
    text = settings.get_text_config()
    try:
        embedding = module.get_input_embeddings()
    except NotImplementedError as error:
        raise UnreadableModelError(
            f"{model.name} is a {type(module).__name__}, which needs several inputs. Wrap it with stemma.from_module "
            "so that it takes one"
        ) from error
    rows = embedding.num_embeddings if isinstance(embedding, torch.nn.Embedding) else int(text.vocab_size)
    last = rows - 1 if folder is None else tokenizer.largest_token_id(folder, rows)
    spec = InputSpec("tokens", (_positions(text),), 0, last or 0)
    padless = type(module).__name__.endswith("ForSequenceClassification") and getattr(text, "pad_token_id", 0) is None
    whole = partial(_without_padding, (text, settings)) if padless else _unchanged
    forward = None
    parameters = inspect.signature(module.forward).parameters
    if "inputs_embeds" in parameters and not getattr(settings, "is_encoder_decoder", False):
        forward = _one_hot_forward(whole(_forward_of(module, "inputs_embeds")), embedding)
    digest = network_digest(model.digest, code, content, spec)
    return Network(
        model.name, digest, spec, whole(_forward_of(module, "input_ids")), module,
        from_one_hot=forward, tokenizer=None if folder is None else tokenizer.vocabulary_digest(folder),
        scores=has_head(module),
    )  # fmt: skip


def _unchanged(forward: Forward) -> Forward:
    return forward


def _without_padding(settings: Sequence[Any], forward: Forward) -> Forward:
    """A classifier without padding token: probes are not padded, so the last token is used."""

    def answer(x: "torch.Tensor") -> Any:
        before = [s.pad_token_id for s in settings]
        for s in settings:
            s.pad_token_id = -1
        try:
            return forward(x)
        finally:
            for s, kept in zip(settings, before, strict=True):
                s.pad_token_id = kept

    return answer


def _positions(settings: Any) -> int:
    longest = getattr(settings, "max_position_embeddings", None) or getattr(settings, "seq_length", None)
    if not longest or longest < 0:
        return UNLIMITED_LENGTH
    return int(longest) - settings.pad_token_id - 1 if settings.model_type in OFFSET_POSITIONS else int(longest)


def _one_hot_forward(forward: Callable[["torch.Tensor"], Any], embedding: Any) -> Callable[["torch.Tensor"], Any]:
    import torch

    def from_one_hot(one_hot: "torch.Tensor") -> Any:
        words = one_hot.shape[-1]
        if type(embedding) is torch.nn.Embedding:
            table = embedding.weight[:words]
        else:  # some embeddings scale their output
            table = embedding(torch.arange(words, device=one_hot.device))
        return forward(one_hot.to(table.dtype) @ table)

    return from_one_hot


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
