"""Models and tokenizers of the Hugging Face hub: what is fetched, and what is found in its cache.

In: owner/name. Out: a folder of the cache. Only .json, .txt and .safetensors are ever asked for, of a model's own
parts, and of each network one variant; files that can hold code are not. https://huggingface.co/docs/huggingface_hub
"""

import errno
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from ..config import Config, check

CLIP = 49_408  # tokens of the one vocabulary that all published text encoders share


def fetch(
    repo: str, revision: str | None = None, variant: str | None = None, offline: bool = False, weights: bool = True
) -> Path:
    """The folder of a model, downloaded as far as it is not in the cache.

    Args:
        repo: owner/name.
        revision: a branch, tag or commit.
        variant: which weights, such as "fp16"; a network without that variant gives its plain ones.
        offline: look into the cache only; HF_HUB_OFFLINE=1 says the same.
        weights: False: of a diffusers model the JSON and text files alone.

    Raises:
        ValueError: not there, private, gated, not reachable, or no model that minisd reads; one line.
    """
    hub = library(repo)
    offline = offline or hub.constants.HF_HUB_OFFLINE
    with asking(repo, offline):
        if offline:
            few = ["model_index.json", *(f"{part}/config.json" for part in PARTS)]
            return Path(hub.snapshot_download(repo, revision=revision, local_files_only=True, allow_patterns=few))
        names = wanted(hub.list_repo_files(repo, revision=revision), repo, variant, weights)
        return Path(hub.snapshot_download(repo, revision=revision, allow_patterns=names))


def library(what: str) -> ModuleType:
    """huggingface_hub, which is an extra.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import huggingface_hub.constants  # which its lazy front door does not offer
    except ImportError as error:
        raise ValueError(f"{what} is on the hub, which takes another library: pip install huggingface_hub") from error
    return huggingface_hub


@contextmanager
def asking(repo: str, offline: bool) -> Iterator[None]:
    """Turn what the library raises into a ValueError of one line."""
    from huggingface_hub import errors

    reasons = {
        errors.GatedRepoError: f"is gated: accept its terms at https://huggingface.co/{repo}, then run hf auth login",
        errors.RepositoryNotFoundError: "is not on the hub, or private; nor is there a file or folder of that name",
        errors.RevisionNotFoundError: "has no such revision",
        errors.OfflineModeIsEnabled: "is not in the hub's cache, and the hub is switched off",
        errors.LocalEntryNotFoundError: "is not (whole) in the hub's cache, and the hub "
        + ("is not asked: try without --offline" if offline else "cannot be reached"),
    }
    try:
        yield
    except tuple(reasons) as error:
        reason = next(text for kind, text in reasons.items() if isinstance(error, kind))
        raise ValueError(f"{repo} {reason}") from error
    except (OSError, *errors.HfHubHTTPError.__bases__) as error:  # the HTTP library's own errors, whichever it is
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EACCES, errno.EROFS):
            raise  # the disk's own words say it better
        told = " ".join(f"{type(error).__name__}: {error}".split())[:150]
        raise ValueError(f"{repo}: the hub cannot be reached (--offline takes what its cache has): {told}") from error


def wanted(names: Iterable[str], repo: str, variant: str | None, weights: bool) -> list[str]:
    """Of a repository's files, those of a model: configs, tokenizers, and one set of weights for each network.

    Raises:
        ValueError: it is no model that minisd reads, or has no .safetensors.
    """
    names = sorted(names)
    texts = [n for n in names if n.endswith((".json", ".txt")) and not n.endswith(".bin.index.json")]
    if "model_index.json" not in names:
        own = {"config.json", "model.safetensors", "tokenizer/vocab.json"}
        single = [n for n in names if n.endswith((".safetensors", ".ckpt"))]
        way = f": download one of {', '.join(single[:3])} and give that file" if single else ""
        check(own <= set(names), f"{repo} is not a diffusers model: it has no model_index.json{way}")
        kept = ("config.json", "index.json", "model.safetensors")
        return [n for n in names if n in kept or (n in texts and n.startswith(("tokenizer/", "tokenizer_2/")))]
    found = [n for n in texts if n == "model_index.json" or n.rpartition("/")[0] in PARTS]
    if weights:
        for network in NETWORKS:
            kinds = variants(names, network)
            there = kinds or not any(n.startswith(f"{network}/") for n in names)
            check(bool(there), f"{repo}: its {network} is not there as .safetensors, and other kinds are not fetched")
            choice = next((kind for kind in (variant or "", "", "fp16", *kinds) if kind in kinds), "")
            found += kinds.get(choice, [])
    return found


def variants(names: Iterable[str], network: str) -> dict[str, list[str]]:
    """The .safetensors of one network, whole or in shards, by variant; "" is the plain one."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        folder, _, file = name.rpartition("/")
        match = WEIGHTS.fullmatch(file) if folder == network else None
        if match:
            kinds.setdefault(match[1] or match[2] or "", []).append(name)
    return kinds


def find_tokenizers(config: Config, offline: bool = False) -> list[Path]:
    """A tokenizer folder for each tower of a single file, which carries none: from the hub's cache, else the hub.

    OpenAI's and OpenCLIP's towers have one vocabulary in common. What they pad with differs; the config says it.

    Raises:
        ValueError: there is none; one line says what to download.
    """
    sizes = {tower.vocab_size for tower in config.text}
    other = f"a single file carries no tokenizer, and its text encoder has {max(sizes):,} tokens, not CLIP's {CLIP:,}"
    check(sizes == {CLIP}, f"{other}: give its tokenizer with --tokenizer DIR")
    try:
        hub = library("the tokenizer")
        folder = cached_tokenizer(hub) or download_tokenizer(hub, offline or hub.constants.HF_HUB_OFFLINE)
    except ValueError as error:
        way = f"download vocab.json and merges.txt of {TOKENIZERS[0][0]} into a folder and add --tokenizer FOLDER"
        raise ValueError(f"a single file carries no tokenizer: {way} ({error})") from error
    return [folder] * len(config.text)


def cached_tokenizer(hub: ModuleType) -> Path | None:
    """The first published tokenizer in the hub's cache."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    for repo, inside in TOKENIZERS:
        files = [f"{inside}{name}" for name in TOKENIZER_FILES[:2]]
        try:
            home = Path(hub.snapshot_download(repo, local_files_only=True, allow_patterns=files))
        except LocalEntryNotFoundError:
            continue
        if all((home / file).is_file() for file in files):
            return home / inside
    return None


def download_tokenizer(hub: ModuleType, offline: bool) -> Path:
    """OpenAI's, 1.5 MB.

    Raises:
        ValueError: the hub cannot be asked.
    """
    repo = TOKENIZERS[0][0]
    check(not offline, "the hub's cache has none, and the hub is not asked")
    with asking(repo, offline):
        return Path(hub.snapshot_download(repo, allow_patterns=list(TOKENIZER_FILES)))


NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")
PARTS = (*NETWORKS, "tokenizer", "tokenizer_2", "scheduler")
WEIGHTS = re.compile(  # the variant stands before or behind the number of the shard
    r"(?:model|diffusion_pytorch_model)(?:\.([\w-]+?))?(?:-\d{5}-of-\d{5})?(?:\.([\w-]+))?\.safetensors"
)
TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")
TOKENIZERS = (  # where the vocabulary may lie already: repository, folder inside
    ("openai/clip-vit-large-patch14", ""),
    ("laion/CLIP-ViT-bigG-14-laion2B-39B-b160k", ""),
    ("stabilityai/stable-diffusion-xl-base-1.0", "tokenizer/"),
    ("stabilityai/stable-diffusion-2", "tokenizer/"),
    ("stabilityai/stable-diffusion-2-1", "tokenizer/"),
    ("stable-diffusion-v1-5/stable-diffusion-v1-5", "tokenizer/"),
    ("runwayml/stable-diffusion-v1-5", "tokenizer/"),
    ("CompVis/stable-diffusion-v1-4", "tokenizer/"),
)
