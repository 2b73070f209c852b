"""posttrain serve: one model, and adapters of it, to whoever speaks OpenAI's interface."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from posttrain.cli import options


def serve(
    model: options.ModelName,
    host: Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes any free one.")] = 8000,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="What clients call the model (default: its own name).")
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option("--adapter", metavar="NAME=FOLDER", help="An adapter of the model; may be given several times."),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key", metavar="KEY", envvar="POSTTRAIN_API_KEY", help="What clients must send as their key."
        ),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option("--allowed-host", metavar="NAME", help="Another name that requests may ask under; * is any."),
    ] = None,
    template: options.Template = "auto",
    device: options.Device = "auto",
    dtype: Annotated[
        Literal["fp32", "bf16", "fp16"], typer.Option("--dtype", help="Of the weights; fp32 is exact.")
    ] = "fp32",
    max_rows: Annotated[
        int | None, typer.Option("--max-rows", min=1, help="Completions sampled at a time (default: 64, GPU 256).")
    ] = None,
    max_waiting: Annotated[
        int, typer.Option("--max-waiting", min=0, help="Completions that may wait; more are told to come back.")
    ] = 256,
    cache_tokens: Annotated[
        int, typer.Option("--cache-tokens", min=16, help="Tokens of all running prompts and answers together.")
    ] = 32_768,
    prefix_tokens: Annotated[
        int, typer.Option("--prefix-tokens", min=0, help="Tokens kept of what has ended, for prompts that begin so.")
    ] = 8_192,
    grace: Annotated[
        float, typer.Option("--grace", min=0, metavar="SECONDS", help="Time that running answers have at the end.")
    ] = 10.0,
    log_requests: Annotated[
        bool, typer.Option("--log-requests", help="A line for each request on stderr, without its contents.")
    ] = False,
    model_code: options.ModelCode = "refuse",
) -> None:
    """Serve a model to clients of OpenAI's interface: completions, chats, log-probs; rewards of a reward model.

    The folder's generation_config.json changes no sampling: what a request does not say has OpenAI's default.
    """
    from posttrain.cli.serving import adapters_of, check_extra, serve_model
    from posttrain.models import require_known

    check_extra()
    require_known(model)  # before torch is loaded
    adapters = adapters_of(adapter or [])
    for folder in adapters.values():
        require_known(folder, where="--adapter")
    serve_model(
        model,
        adapters,
        host=host,
        port=port,
        key=api_key,
        hosts=allowed_host or [],
        max_waiting=max_waiting,
        grace=grace,
        log_requests=log_requests,
        model_code=model_code,
        name=name,
        template=template,
        device=device,
        dtype=dtype,
        max_rows=max_rows,
        cache_tokens=cache_tokens,
        prefix_tokens=prefix_tokens,
    )
