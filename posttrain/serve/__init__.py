"""An OpenAI-compatible server on the native engine: `posttrain serve MODEL`.

    served = load_served("embedded", adapters={"sums": "runs/sums/grpo/model"})     # posttrain.serve.loading
    app = create_app(served, Settings())                                            # posttrain.serve.app, an ASGI app
    run(app, ...)                                                                   # posttrain.serve.running, uvicorn

A request becomes a record (`completions`, `chat`, `scoring`), its completions are sampled in a thread of their own
(`engine_thread`), and what comes out becomes text once, the same whether it is streamed or not (`answer`).
"""
