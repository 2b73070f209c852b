"""What samples an online stage's completions: `engine`, told apart by `kind`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from posttrain.config.values import Float, Int, Settings, listed, refuse, require_no_credential

OWN_ARGUMENTS = ("model", "host", "port", "served_model_name", "generation_config", "logprobs_mode")
"""Arguments of a launched server that posttrain sets, and without which its rollouts would be wrong or not be found."""
SECRET = re.compile(r"(?i)(key|token|secret|password|credential)s?$")


class NativeEngineSettings(Settings):
    """In the trainer's process and on its weights."""

    kind: Literal["native"] = "native"
    """In the trainer's process; needs nothing else."""
    tokens: Int = Field(default=32_768, ge=1)
    """Most tokens whose keys and values are in memory at a time: the bound of its memory. One completion of the longest
    prompt must fit; what does not fit beside it waits, and the result is the same."""
    rows: Int | None = Field(default=None, ge=1)
    """Most completions that are sampled at a time; null: 64 on a CPU, else 256."""


class LaunchSettings(Settings):
    """Servers that the run starts on this machine, watches, starts again, and ends with itself."""

    servers: Int = Field(default=1, ge=1)
    """How many; requests go to the one that has the fewest."""
    python: str | None = None
    """The Python of an environment that has vLLM: `/opt/vllm/bin/python`, or a name on the PATH; null: the trainer's
    own."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the server by their names, `{max_num_seqs: 64, enforce_eager: true}`; null takes a default
    of posttrain's away."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Further variables of the servers' environment, which is else the trainer's."""
    devices: tuple[str, ...] | None = None
    """`CUDA_VISIBLE_DEVICES` of each server, `["2", "3"]` or `["4,5", "6,7"]`; null: what the trainer sees."""
    start_seconds: Float = Field(default=600.0, gt=0)
    """Within which a server must answer after it was started."""
    restarts: Int = Field(default=3, ge=0)
    """Times within half an hour that one server may die and is started again; one more ends the run."""

    @field_validator("environment", mode="before")
    @classmethod
    def _no_secret(cls, environment: Any) -> Any:
        if not isinstance(environment, Mapping):
            return environment
        for name in environment:
            if isinstance(name, str) and SECRET.search(name):
                raise refuse(
                    "this variable looks like a credential, which every copy of the recipe would show",
                    path=(name,),
                    found=name,
                    remedy="set it in the shell: servers get the environment of the run",
                )
        # `VLLM_CPU_KVCACHE_SPACE: 2` is a number in YAML, and a text in an environment.
        return {
            name: str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
            for name, value in environment.items()
        }

    @field_validator("arguments")
    @classmethod
    def _not_ours(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        given = {name.lstrip("-").replace("-", "_"): value for name, value in arguments.items()}
        for name in given:
            if name in OWN_ARGUMENTS:
                raise refuse(
                    "this argument is set by posttrain",
                    path=(name,),
                    found=name,
                    remedy="leave it out",
                )
            if SECRET.search(name):
                raise refuse(
                    "a launched server needs no credential: the endpoints that take its weights check none",
                    path=(name,),
                    found=name,
                    remedy="leave it out; launched servers listen on this machine alone",
                )
        return given

    @model_validator(mode="after")
    def _devices_of_each(self) -> Self:
        if self.devices is not None and len(self.devices) != self.servers:
            raise refuse(
                "each server needs its devices",
                path=("devices",),
                found=f"{len(self.devices)} entries for {self.servers} servers",
                remedy="give as many entries as `servers`",
            )
        return self


class VLLMServedSettings(Settings):
    """vLLM servers in an environment, or on machines, of their own. One of `url`, `urls` and `launch`."""

    kind: Literal["vllm_served"] = "vllm_served"
    """A vLLM server."""
    url: str | None = None
    """`http://127.0.0.1:8000`. Its development endpoints take weights, so keep the port private."""
    urls: Annotated[tuple[str, ...], BeforeValidator(listed)] = ()
    """Several servers of the same model. Each is given the weights, and proven to have them; one that goes away is
    waited for while the others answer."""
    launch: LaunchSettings | None = None
    """Servers that the run itself starts: `{servers: 2, python: /opt/vllm/bin/python}`."""
    weights_folder: str | None = None
    """Where weights are written for the server, on a file system that both see; null: in this machine's memory."""
    served_name: str | None = None
    """The server's name of the model; null: the first that it lists."""
    requests: Int = Field(default=256, ge=1)
    """Prompts in flight at a time, over all servers."""
    patience: Float = Field(default=60.0, ge=0)
    """Seconds for which a server that cannot be reached is tried again."""

    @property
    def addresses(self) -> tuple[str, ...]:
        """Of the servers that somebody else runs."""
        return self.urls if self.url is None else (self.url,)

    @field_validator("url", mode="before")
    @classmethod
    def _without_credential(cls, url: Any) -> Any:
        # There is no `key_env` here: the development endpoints that take weights check no key.
        return require_no_credential(url, "take it out; reach a server on another machine through a tunnel (`ssh -L`)")

    @field_validator("urls")
    @classmethod
    def _different_and_without_credential(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for url in urls:
            cls._without_credential(url)
        same = [url for at, url in enumerate(urls) if url.rstrip("/") in {other.rstrip("/") for other in urls[:at]}]
        if same:
            raise refuse("the same server is named twice", found=same[0], remedy="name each server once")
        return urls

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        given = [key for key in ("url", "urls", "launch") if getattr(self, key)]
        if len(given) != 1:
            raise refuse(
                "the served engine needs one of `url`, `urls` and `launch`",
                found=", ".join(given) or "none of them",
                remedy="give the address of a server, or `launch: {python: PATH}` to have one started",
            )
        if self.launch is not None and self.served_name is not None:
            raise refuse("a launched server has a name already", path=("served_name",), remedy="leave it out")
        return self


class VLLMColocatedSettings(Settings):
    """vLLM in the trainer's process and on its GPU, asleep while the trainer trains."""

    kind: Literal["vllm_colocated"] = "vllm_colocated"
    """vLLM in the trainer's process; needs a GPU and the extra `vllm`."""
    gpu_memory: Float = Field(default=0.4, gt=0, le=1)
    """Share of the GPU that vLLM may fill while it is awake."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of `vllm.LLM`: `{tensor_parallel_size: 2, dtype: bfloat16}`."""


def _by_name(value: Any) -> Any:
    """`engine: native` for `engine: {kind: native}`."""
    return {"kind": value} if isinstance(value, str) else value


EngineSettings = Annotated[
    NativeEngineSettings | VLLMServedSettings | VLLMColocatedSettings,
    Field(discriminator="kind"),
    BeforeValidator(_by_name),
]
ENGINES: tuple[type[Settings], ...] = (NativeEngineSettings, VLLMServedSettings, VLLMColocatedSettings)
