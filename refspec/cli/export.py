"""`refspec export`: a GGUF as a checkpoint directory for trainers and cluster engines."""

from __future__ import annotations

import click

from refspec.cli.command import PATH, option
from refspec.cli.group import main, output_option

LAYOUTS = ("speculators", "specforge", "eagle", "hf")


@main.command()
@click.argument("file", metavar="GGUF", type=PATH)
@output_option("DIR", "Directory to make; must hold no checkpoint yet.")
@option(
    "--format", "layout", type=click.Choice(LAYOUTS), required=True, help="Layout of a drafter; hf for a Llama target."
)
@option(
    "--dtype", type=click.Choice(["auto", "F32", "BF16", "F16"]), default="auto", show_default=True,
    help="Type of the weights; auto is the smallest that rounds nothing.",
)  # fmt: skip
@option("--verifier", metavar="NAME", help="The target's name or path for a speculators config.")
def export(file: str, out: str, layout: str, dtype: str, verifier: str | None) -> None:
    """Make a checkpoint directory of a GGUF, for other engines.

    \b
        refspec export drafter.gguf --format speculators -o drafter/

    For trainers, vLLM, SGLang and TensorRT-LLM.
    """
    from refspec import named
    from refspec.convert.export import export_drafter
    from refspec.convert.export_hf import export_target

    path = named.local(file)
    if layout == "hf":
        done = export_target(path, out, dtype=dtype)
    else:
        done = export_drafter(path, out, layout, dtype=dtype, verifier=verifier)
    click.echo("\n".join(done.lines()))
