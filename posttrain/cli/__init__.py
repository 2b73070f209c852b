"""The command line: one file per verb. `posttrain --help` loads neither torch nor a model library."""


def main() -> None:
    from posttrain.cli.app import app
    from posttrain.cli.outputs import accept_any_text

    accept_any_text()  # before anything is printed, help and errors included
    app()
