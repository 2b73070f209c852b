"""The command line: one file per verb. `posttrain --help` loads neither torch nor a model library."""


def main() -> None:
    from posttrain.cli.app import app

    app()
