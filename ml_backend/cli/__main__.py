"""``label-studio-video COMMAND``, also ``python -m ml_backend.cli COMMAND``: the commands of an installed package."""

from __future__ import annotations

from importlib import import_module

import click

_COMMANDS = (
    "import_videos",
    "predict_video",
    "patterns",
    "train",
    "versions",
    "export_annotations",
    "export_dataset",
    "render_video",
    "track_box",
    "live",
    "contact_sheet",
    "check_annotations",
    "erase_project",
)
#: Modules by command. They are imported when they are needed: together they take seconds.
MODULES = {name.replace("_", "-"): f"ml_backend.cli.commands.{name}" for name in _COMMANDS}
MODULES["doctor"] = "ml_backend.cli.doctor.__main__"


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = MODULES.get(cmd_name)
        command: click.Command | None = import_module(module).main if module else None
        return command


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="label-studio-video-backend")
def main() -> None:
    """Pre-annotate, teach, train and export video of Label Studio projects."""


if __name__ == "__main__":
    main(prog_name="label-studio-video")
