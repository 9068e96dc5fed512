"""Networks of Hugging Face folders: the class from transformers, the weights from Stemma's own reader.

Only the library's own classes are built, with the configuration beside the weights: code that lies in the folder is
never imported, nothing is fetched from anywhere, and attention is the plain one.
"""

import inspect
import json
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stemma.checkpoints.model import Model
from stemma.errors import MissingExtraError, UnreadableModelError
from stemma.networks import preprocessing, tokenizer
from stemma.networks.loading import refuse_misfits, state
from stemma.networks.preprocessing import Preprocessing
from stemma.types import InputSpec
from stemma.types.network import Network, network_digest

if TYPE_CHECKING:
    import torch

GUESSED = (
    "AutoModelForImageClassification", "AutoModelForSequenceClassification", "AutoModelForCausalLM",
    "AutoModelForMaskedLM", "AutoModelForAudioClassification", "AutoModelForCTC", "AutoModel",
)  # fmt: skip
"""Tried in this order where the configuration names no class; the first that the weights fit is taken."""

DROPPED = frozenset(
    {"auto_map", "quantization_config", "_name_or_path", "attn_implementation", "_attn_implementation",
     "_attn_implementation_internal", "experts_implementation", "_experts_implementation",
     "_experts_implementation_internal", "use_kernels", "torch_dtype", "dtype", "transformers_version"}
)  # fmt: skip
"""Fields of a configuration that say where code, kernels or packed weights come from, or nothing about the function."""

LONGEST = 1 << 20
"""Tokens that a network takes whose configuration sets no limit."""

SHIFTED = frozenset({"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "roberta-prelayernorm", "longformer"})
"""Architectures that count positions from behind the padding token."""


def open_hugging_face(model: Model) -> Network:
    """The network of a checkpoint folder with a configuration of transformers.

    Cost: the weights in memory, in float32 (float64 where they are).

    Args:
        model: As loaded from the folder.

    Returns:
        A network that takes raw inputs, in evaluation mode; token networks with one embedding also take relaxed
        one-hot inputs.

    Raises:
        MissingExtraError: If transformers is not installed.
        UnreadableModelError: If the class is unknown or lies in the folder as code, or the weights do not fit it.
    """
    transformers = _transformers()
    config = {k: v for k, v in (model.config or {}).items() if k not in DROPPED}
    with _alone(transformers):
        settings = _settings(transformers, model, config)
        module = _loaded(transformers, model, settings)
    folder = Path(model.source)
    folder = folder if folder.is_dir() else folder.parent
    says = preprocessing.claimed(folder)
    code = f"transformers:{type(module).__name__}"
    content = json.dumps([config, says], sort_keys=True)
    takes = str(module.main_input_name)
    if takes == "input_ids":
        return _token_network(model, module, folder, code, content)
    reads = _reads(takes, config, settings, says)
    from stemma.networks.normalization import Normalised

    answer = Normalised(_asked(module, takes), reads.spec, flip=reads.flip, each=reads.each)
    digest = network_digest(model.digest, code, content, reads.spec)
    return Network(model.name, digest, reads.spec, answer, module)


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
def _alone(transformers: Any) -> Generator[None]:
    # no connection, whatever a configuration names; the library's warnings and progress bars would go between ours
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
            f"no network is known for the model_type {kind!r} of {model.name} (transformers "
            f"{transformers.__version__}). Give a factory with --network MODULE:FACTORY --allow-code"
        )
    try:
        return transformers.CONFIG_MAPPING[kind].from_dict(_without(config))
    except Exception as error:  # each architecture checks its configuration in its own way
        raise UnreadableModelError(
            f"the config.json of {model.name} does not describe a {kind}: {_line(error)}. Correct it"
        ) from error


def _without(config: Mapping[str, Any]) -> dict[str, Any]:
    # also inside the configurations of parts; no part fetches weights of its own
    kept = {k: _without(v) if isinstance(v, Mapping) else v for k, v in config.items() if k not in DROPPED}
    return {**kept, **{k: False for k in ("use_pretrained_backbone", "use_timm_backbone") if kept.get(k)}}


def _loaded(transformers: Any, model: Model, settings: Any) -> "torch.nn.Module":
    weights = state(model)
    named = [n for n in (model.config or {}).get("architectures") or () if isinstance(n, str)]
    if named:
        made = getattr(transformers, named[0], None)
        if not (inspect.isclass(made) and issubclass(made, transformers.PreTrainedModel)):
            own = " Its code lies in the folder, which is not run." if (model.config or {}).get("auto_map") else ""
            raise UnreadableModelError(
                f"{model.name} is a {named[0]}, which transformers {transformers.__version__} does not have.{own} Give "
                "a factory with --network MODULE:FACTORY --allow-code"
            )
        return _built(made, model, settings, weights)
    failed: UnreadableModelError | None = None
    for auto in (getattr(transformers, name) for name in GUESSED):
        if type(settings) not in auto._model_mapping:
            continue
        made = auto._model_mapping[type(settings)]
        try:
            return _built(made[0] if isinstance(made, tuple) else made, model, settings, weights)
        except UnreadableModelError as error:
            failed = error
    raise failed or UnreadableModelError(
        f"{model.name} is a {settings.model_type} whose head is not said. Name its class under 'architectures' in "
        "config.json"
    )


def _built(made: Any, model: Model, settings: Any, weights: "Mapping[str, torch.Tensor]") -> "torch.nn.Module":
    import torch

    dtype = torch.float64 if any(t.dtype == torch.float64 for t in weights.values()) else torch.float32
    try:
        module, report = made.from_pretrained(
            None, config=settings, state_dict=dict(weights), dtype=dtype, attn_implementation="eager",
            local_files_only=True, ignore_mismatched_sizes=True, output_loading_info=True,
        )  # fmt: skip
    except Exception as error:  # each architecture fails in its own way
        raise UnreadableModelError(f"no {made.__name__} can be made of {model.name}: {_line(error)}") from error
    shapes = {name[0] if isinstance(name, tuple) else name for name in report["mismatched_keys"]}
    refuse_misfits(model.name, report["missing_keys"], _inside(module, report["unexpected_keys"]), shapes)
    return module.eval()


def _inside(module: Any, unexpected: set[str]) -> set[str]:
    # a head of another task beside a whole trunk changes nothing that this class computes
    trunk = f"{module.base_model_prefix}."
    if any(name.startswith(trunk) for name in module.state_dict()):
        return {name for name in unexpected if name.startswith(trunk)}
    return unexpected


def _reads(name: str, config: Mapping[str, Any], settings: Any, says: Mapping[str, Any]) -> Preprocessing:
    if name == "pixel_values":
        return preprocessing.image(config, settings, says)
    if name == "input_values":
        return preprocessing.sound(settings, says)
    bins, positions = getattr(settings, "num_mel_bins", 0), getattr(settings, "max_source_positions", 0)
    return Preprocessing(InputSpec("tensor", (int(bins or 0), 2 * int(positions or 0)), -1.0, 1.0))


def _asked(module: Any, name: str) -> Callable[["torch.Tensor"], Any]:
    """The module as a function of its one input; an encoder with a decoder is asked for its first token.

    Returns:
        From inputs `[n, …]` to the module's answer.
    """
    import torch

    takes = inspect.signature(module.forward).parameters
    settings = module.config
    start = getattr(settings, "decoder_start_token_id", None)
    decodes = (
        getattr(settings, "is_encoder_decoder", False) and start is not None and "Generation" in type(module).__name__
    )
    fixed = {"use_cache": False} if "use_cache" in takes else {}

    def ask(x: "torch.Tensor") -> Any:
        if not decodes:
            return module(**{name: x}, **fixed)
        first = torch.full((len(x), 1), int(start or 0), device=x.device)
        return module(**{name: x}, **fixed, decoder_input_ids=first)

    return ask


def _token_network(model: Model, module: Any, folder: Path, code: str, content: str) -> Network:
    import torch

    settings = module.config
    text = settings.get_text_config()
    try:
        embedding = module.get_input_embeddings()
    except NotImplementedError as error:
        raise UnreadableModelError(
            f"{model.name} is a {type(module).__name__}, which wants several inputs at once. Wrap it with "
            "stemma.from_module so that one is left"
        ) from error
    rows = embedding.num_embeddings if isinstance(embedding, torch.nn.Embedding) else int(text.vocab_size)
    spec = InputSpec("tokens", (_positions(text),), 0, tokenizer.last_id(folder, rows) or 0)
    if type(module).__name__.endswith("ForSequenceClassification") and getattr(text, "pad_token_id", 0) is None:
        text.pad_token_id = settings.pad_token_id = -1  # no probe is padded: the last token decides
    relaxed = None
    takes = inspect.signature(module.forward).parameters
    if "inputs_embeds" in takes and not getattr(settings, "is_encoder_decoder", False):
        relaxed = _relaxed(_asked(module, "inputs_embeds"), embedding)
    digest = network_digest(model.digest, code, content, spec)
    return Network(
        model.name, digest, spec, _asked(module, "input_ids"), module,
        from_one_hot=relaxed, tokenizer=tokenizer.identity(folder),
    )  # fmt: skip


def _positions(settings: Any) -> int:
    longest = getattr(settings, "max_position_embeddings", None) or getattr(settings, "seq_length", None)
    if not longest or longest < 0:
        return LONGEST
    return int(longest) - settings.pad_token_id - 1 if settings.model_type in SHIFTED else int(longest)


def _relaxed(ask: Callable[["torch.Tensor"], Any], embedding: Any) -> Callable[["torch.Tensor"], Any]:
    import torch

    def relaxed(one_hot: "torch.Tensor") -> Any:
        words = one_hot.shape[-1]
        if type(embedding) is torch.nn.Embedding:
            table = embedding.weight[:words]
        else:  # some scale what they look up
            table = embedding(torch.arange(words, device=one_hot.device))
        return ask(one_hot.to(table.dtype) @ table)

    return relaxed


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
