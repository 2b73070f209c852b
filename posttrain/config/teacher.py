"""Who is asked to write rows, as a recipe says it: a model on this machine, or one behind an endpoint.

teacher: policy                                              # the stage's own start
teacher: smollm2-135m-instruct                               # a name or a folder; {model: NAME} is the same
teacher: {stage: sft}                                        # a policy that an earlier stage trained
teacher: {url: http://localhost:8000/v1, model: qwen2.5-72b, key_env: OPENAI_API_KEY, per_minute: 60}
"""

from __future__ import annotations

import os
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from posttrain.config.addresses import is_secret_name
from posttrain.config.base import MakingStage
from posttrain.config.values import Float, Int, Settings, refuse, require_no_credential

COMPLETIONS = "/chat/completions"
SECRET_HEADERS = ("authorization", "x-api-key", "api-key")
"""Names of headers that some write into the body, beside those of `is_secret_name`."""
POLICY = "policy"
"""What a recipe writes for the model that the stage starts from."""


class TeacherSettings(Settings):
    """What every teacher has."""

    IS_FAMILY: ClassVar[bool] = True

    most_tokens: Int | None = Field(default=None, ge=1)
    """Tokens that may be spent in all, prompts included; then no more is asked, what was answered is kept, and a line
    says so. null: no limit."""


class LocalTeacher(TeacherSettings):
    """A model on this machine; the same seeds give the same answers."""

    kind: Literal["local"] = "local"
    """`local`: a model on this machine, by its name or folder."""
    model: str | None = None
    """Catalogue name, folder or hub id; null: the policy that the stage starts from."""
    stage: str | None = None
    """A stage of this recipe that trains it; instead of `model`."""
    device: str = "auto"
    """Where it computes: auto, cpu, cuda, cuda:N or mps."""
    rows_at_once: Int | None = Field(default=None, ge=1)
    """Answers that are written side by side; null: 64 on a CPU, else 256. It changes no answer."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.model is not None and self.stage is not None:
            raise refuse(
                "a teacher is one model",
                path=("stage",),
                found=f"model: {self.model}, stage: {self.stage}",
                expected="`model` or `stage`, or neither, which is the stage's own start",
                remedy="leave one of the two out",
            )
        return self

    @property
    def is_policy(self) -> bool:
        """Whether it is the model that the stage starts from."""
        return self.model is None and self.stage is None


class Price(Settings):
    """What an endpoint takes for a million tokens, in one currency: {prompt: 0.15, completion: 0.60}."""

    prompt: Float = Field(default=0.0, ge=0)
    """For a million tokens of the questions."""
    completion: Float = Field(default=0.0, ge=0)
    """For a million tokens of the answers, thoughts included."""


class EndpointTeacher(TeacherSettings):
    """A model behind an OpenAI-compatible endpoint."""

    kind: Literal["endpoint"] = "endpoint"
    """`endpoint`: a model behind an OpenAI-compatible address."""
    url: str = Field(pattern=r"^https?://")
    """Up to and with the version: http://localhost:8000/v1"""
    model: str
    """The model's name there."""
    # The variable's name: recipes are shared, and every run folder keeps a copy of its recipe.
    key_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Name of the environment variable that holds the key; the key itself stands nowhere."""
    per_minute: Float | None = Field(default=None, gt=0)
    """Requests a minute at most."""
    tokens_per_minute: Float | None = Field(default=None, gt=0)
    """Tokens a minute at most, questions and answers together."""
    concurrency: Int = Field(default=8, ge=1, le=1024)
    """Requests at once."""
    retries: Int = Field(default=5, ge=0)
    """After a failure that may pass; the waits double, or are what the server asks for."""
    timeout: Float = Field(default=120.0, gt=0)
    """Seconds for one answer."""
    price: Price | None = None
    """What its tokens cost; without it no cost is shown."""
    most_cost: Float | None = Field(default=None, gt=0)
    """What may be spent in all, in the currency of `price`; then no more is asked, what was answered is kept, and a
    line says so. Answers that are under way when it is reached still arrive. null: no limit."""
    limit_key: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the endpoint calls the longest answer; some models take `max_completion_tokens` alone."""
    send_seed: bool = True
    """Send each question's seed; some endpoints refuse it."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """Further keys of every request: `{reasoning_effort: low}`."""

    # Before the form is checked, whose error shows what is written.
    @field_validator("url", mode="before")
    @classmethod
    def _without_credential(cls, url: Any) -> Any:
        return require_no_credential(
            url, "take it out, export it as an environment variable, and name that: `key_env: NAME`"
        )

    @field_validator("url")
    @classmethod
    def _up_to_the_version(cls, url: str) -> str:
        path = url.rstrip("/")
        if path.endswith(COMPLETIONS):
            raise refuse(
                f"the address goes on to `{COMPLETIONS}`, which is added to it",
                found=url,
                remedy=f"write `url: {path.removesuffix(COMPLETIONS)}`",
            )
        return url

    @field_validator("extra_body")
    @classmethod
    def _own_keys(cls, body: dict[str, Any]) -> dict[str, Any]:
        taken = ("model", "messages", "stream", "n", "temperature", "top_p", "max_tokens", "seed", "stop", "tools")
        for key in body:
            if key in taken:
                raise refuse(
                    f"`{key}` is set by the stage itself",
                    path=(key,),
                    found=f"{key}: {body[key]!r}",
                    remedy="remove it; how answers are drawn stands in the stage's `sampling`",
                )
            if is_secret_name(key) or key.lower() in SECRET_HEADERS:
                raise refuse(
                    f"`{key}` is a credential, which every copy of the recipe would show",
                    path=(key,),
                    found=f"{key}: ***",
                    remedy="take it out, export it as an environment variable, and name that: `key_env: NAME`",
                )
        return body

    @model_validator(mode="after")
    def _cost_known(self) -> Self:
        if self.most_cost is not None and (self.price is None or not (self.price.prompt or self.price.completion)):
            raise refuse(
                "`most_cost` limits a cost that nobody knows",
                path=("most_cost",),
                found=f"most_cost: {self.most_cost:g}, without a price",
                remedy="write `price: {prompt: 0.15, completion: 0.60}`, for a million tokens, or `most_tokens`",
            )
        return self


def _short(value: Any) -> Any:
    """`teacher: policy`, `teacher: FOLDER`, and a group that says by its keys which kind it is."""
    if isinstance(value, (str, os.PathLike)):
        return {"kind": "local"} if str(value) == POLICY else {"kind": "local", "model": str(value)}
    if isinstance(value, dict) and "kind" not in value:
        return {"kind": "endpoint" if "url" in value else "local", **value}
    return value


AnyTeacher = Annotated[
    Annotated[LocalTeacher | EndpointTeacher, Field(discriminator="kind")],
    BeforeValidator(_short),
]
"""Every kind of teacher; a name or a path alone is a local model, `policy` the stage's start."""


class TeacherSampling(Settings):
    """How answers are drawn: what a local model and an endpoint both know."""

    temperature: Float = Field(default=0.7, ge=0)
    """0 takes the likeliest token."""
    top_p: Float = Field(default=1.0, gt=0, le=1)
    """The likeliest tokens that hold this share together; 1: all."""
    max_new_tokens: Int = Field(default=512, ge=1)
    """Longest answer, thoughts included."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Texts that end an answer, which is cut before the first that comes. One alone may stand for the list."""

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop(cls, stop: Any) -> Any:
        return (stop,) if isinstance(stop, str) else stop


class SynthesisStage(MakingStage):
    """What every stage has that makes rows by asking a model. It trains nothing."""

    teacher: AnyTeacher = LocalTeacher()
    """Who is asked: `policy`, a model by name or folder, `{stage: NAME}`, or `{url: ..., model: ...}`."""
    sampling: TeacherSampling = TeacherSampling()
    """How answers are drawn."""
