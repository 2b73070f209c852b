"""What samples an online stage's completions: `engine`, told apart by `kind`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from posttrain.config.values import Float, Int, Settings, require_no_credential


class NativeEngineSettings(Settings):
    """In the trainer's process and on its weights."""

    kind: Literal["native"] = "native"
    """In the trainer's process; needs nothing else."""
    tokens: Int = Field(default=32_768, ge=1)
    """Most tokens whose keys and values are in memory at a time: the bound of its memory. One completion of the longest
    prompt must fit; what does not fit beside it waits, and the result is the same."""
    rows: Int | None = Field(default=None, ge=1)
    """Most completions that are sampled at a time; null: 64 on a CPU, else 256."""


class VLLMServedSettings(Settings):
    """A vLLM server in an environment, or on a machine, of its own."""

    kind: Literal["vllm_served"] = "vllm_served"
    """A vLLM server."""
    url: str
    """`http://127.0.0.1:8000`. Its development endpoints take weights, so keep the port private."""
    weights_folder: str | None = None
    """Where weights are written for the server, on a file system that both see; null: in this machine's memory."""
    served_name: str | None = None
    """The server's name of the model; null: the first that it lists."""
    requests: Int = Field(default=256, ge=1)
    """Prompts in flight at a time."""
    patience: Float = Field(default=60.0, ge=0)
    """Seconds for which a server that cannot be reached is tried again."""

    @field_validator("url", mode="before")
    @classmethod
    def _without_credential(cls, url: Any) -> Any:
        # There is no `key_env` here: the development endpoints that take weights check no key.
        return require_no_credential(url, "take it out; reach a server on another machine through a tunnel (`ssh -L`)")


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
