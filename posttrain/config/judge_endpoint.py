"""A model behind an OpenAI-compatible URL that judges: the keys that say where it is and how it is asked, wherever one
stands (rewards, scores of a selection, win rates)."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator

from posttrain.config.values import Float, Int, Settings, as_text, require_no_credential

STANDARD = "helpfulness, correctness, relevance, and clarity"


class JudgeEndpoint(Settings):
    """Where a judge is, and how it is asked."""

    url: str = Field(pattern=r"^https?://")
    """Up to and with the version: http://localhost:8000/v1"""
    model: str
    """The model's name there."""
    # The variable's name: recipes are shared, and every run folder keeps a copy of its recipe.
    key_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Name of the environment variable that holds the key; the key itself stands nowhere."""
    temperature: Float = Field(default=0.0, ge=0)
    """Of the judge's own sampling."""
    max_tokens: Int = Field(default=512, ge=1)
    """Of its reply, reasons included."""
    cache: Annotated[str | None, BeforeValidator(as_text)] = None
    """Folder of replies by the content of their question."""
    concurrency: Int = Field(default=8, ge=1)
    """Requests at once."""
    per_minute: Float | None = Field(default=None, gt=0)
    """Requests a minute at most."""
    retries: Int = Field(default=5, ge=0)
    """After a failure that may pass; the waits double."""
    timeout: Float = Field(default=120.0, gt=0)
    """Seconds for one answer."""

    # Before the form is checked, whose error shows what is written.
    @field_validator("url", mode="before")
    @classmethod
    def _without_credential(cls, url: Any) -> Any:
        return require_no_credential(
            url, "take it out, export it as an environment variable, and name that: `key_env: NAME`"
        )
