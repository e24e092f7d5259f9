"""How a tier reaches vLLM: a server that somebody runs, or one that we start. Only the knobs; nothing loads."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, model_validator

from operators.base import Knobs

OPTIONS = frozenset(
    {
        *("attention-backend", "block-size", "calculate-kv-scales", "compilation-config", "cpu-offload-gb", "dtype"),
        *("enforce-eager", "gpu-memory-utilization", "kv-cache-dtype", "mamba-block-size"),
        *("mamba-cache-mode", "max-num-batched-tokens", "pipeline-parallel-size", "quantization", "seed"),
        *("speculative-config", "tensor-parallel-size"),
    }
)
"""Options of vLLM's server that ``extra_args`` may give: how it computes and where it keeps things. None of them opens
a port, lets a model bring its own code, changes what is sampled, or is one that we give ourselves."""


class VllmConfig(Knobs):
    """vLLM for one tier: give ``url`` of a server, or ``python`` to start one with."""

    url: str = ""
    """Address of a vLLM server that somebody runs, such as ``https://gpu-1:8000``; it must serve the tier's model."""
    api_key: SecretStr = SecretStr("")
    """What the server at ``url`` wants as its key. Sent by https, or to this machine, and nowhere else."""
    served_name: str = ""
    """The model's name at ``url``; empty: the ``id`` of the tier's model."""
    tokenizer: str = ""
    """Path of the model's ``tokenizer.json``; empty: the one beside the model's file. Required with ``url``."""
    python: str = ""
    """Python of an environment that has vLLM, to start a server with. Its packages and ours can't share one."""
    extra_args: tuple[str, ...] = ()
    """More options for the server we start, each as ``--name`` or ``--name=value``: ``--tensor-parallel-size=2``."""
    kv_bytes: int = Field(0, ge=0)
    """Bytes for keys and values; 0 leaves it to vLLM, which takes nine tenths of the memory that is left: the GPU's, or
    without one the machine's."""
    sleep: bool = False
    """Whether the model can be put to sleep, its weights moved out of the GPU's memory; needs a GPU."""
    gpus: float = Field(0.0, ge=0)
    """GPUs that Ray sets aside for each replica that starts such a server (``generators: per_tier``)."""
    start_timeout_s: float = Field(600.0, gt=0)
    """Longest wait in seconds for a server to load its model, or to answer at all."""
    answer_timeout_s: float = Field(120.0, gt=0)
    """Longest wait in seconds for the next token, with the time in the server's line."""

    @model_validator(mode="after")
    def _one_way(self) -> VllmConfig:
        if bool(self.url) == bool(self.python):
            raise ValueError("give url of a server, or python to start one with, and not both")
        if self.url:
            _check_url(self.url, bool(self.api_key.get_secret_value()))
            if not self.tokenizer:
                raise ValueError("tokenizer is empty; with url, give the path of the model's tokenizer.json")
            if self.extra_args:
                raise ValueError("extra_args are for a server that we start; the one at url has its own")
        elif self.api_key.get_secret_value() or self.served_name:
            raise ValueError("api_key and served_name are for a server at url; the one we start has neither")
        return self

    @model_validator(mode="after")
    def _known_options(self) -> VllmConfig:
        for arg in self.extra_args:
            name = arg.removeprefix("--").partition("=")[0]
            if not arg.startswith("--") or name not in OPTIONS:
                raise ValueError(f"extra_args has {arg!r}; allowed are --name or --name=value of {sorted(OPTIONS)}")
        return self


def _check_url(url: str, with_key: bool) -> None:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as e:
        raise ValueError(f"url is no address: {e}") from e
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError("url must begin with http:// or https:// and name a host")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise ValueError("url holds more than scheme, host, port and path; a key belongs into api_key")
    if with_key and parts.scheme == "http" and not _this_machine(host):
        raise ValueError("api_key would travel unencrypted; use https, or a server on this machine")


def _this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
