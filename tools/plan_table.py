"""Plan named models on many topologies, one `clipjax plan` a row, and print the table of docs/plan.md.

    python tools/plan_table.py FILE.jsonl [--only=TEXT]    # plans what FILE does not have yet
    python tools/plan_table.py FILE.jsonl --table          # prints Markdown

Each row compiles a full-size train step, which takes 1-4 minutes on two cores. It needs the libtpu wheel, and for
`h100` the CUDA plugin's. The data is never read.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs" / "clip.py"

B, L, H, SO = "ViT-B-16", "ViT-L-14", "ViT-H-14", "ViT-SO400M-14-SigLIP"
FULL, DOTS = ("full", "full"), ("dots", "dots")

# (model, topology, slices, batch, fsdp, (remat of the image tower, of the text tower), grad_cache)
ROWS = [
    (B, "v5e:256", 1, 32_768, 1, DOTS, 1),
    (B, "v5e:256", 4, 131_072, 1, DOTS, 1),
    (B, "v5e:256", 16, 524_288, 1, DOTS, 1),
    (B, "v5p:512", 1, 262_144, 1, FULL, 1),
    (B, "v5p:2048", 1, 1_048_576, 1, FULL, 1),
    (B, "h100:8", 1, 32_768, 8, FULL, 8),
    (B, "h100:32", 1, 32_768, 8, FULL, 2),
    (B, "h100:256", 1, 262_144, 8, FULL, 2),
    (B, "h100:1024", 1, 1_048_576, 8, FULL, 2),
    (L, "v5e:256", 1, 32_768, 256, FULL, 1),
    (L, "v5p:512", 1, 131_072, 512, FULL, 1),
    (L, "v5p:512", 1, 65_536, 512, FULL, 1),
    (L, "v5p:2048", 1, 262_144, 512, FULL, 1),
    (L, "h100:8", 1, 32_768, 8, FULL, 16),
    (H, "v5e:256", 1, 32_768, 256, FULL, 1),
    (H, "v5p:512", 1, 65_536, 256, FULL, 1),
    (H, "h100:8", 1, 32_768, 8, FULL, 32),
    (SO, "v5e:256", 1, 32_768, 128, FULL, 1),
    (SO, "v5p:512", 1, 65_536, 128, FULL, 1),
    (SO, "h100:8", 1, 32_768, 8, FULL, 32),
]


def main() -> None:
    """Plans or prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--only", default="", help="rows whose text holds this")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    done = (
        [json.loads(line) for line in args.file.read_text().splitlines()]
        if args.file.exists()
        else []
    )
    if args.table:
        print(table(done))
        return
    have = {json.dumps(row["row"]) for row in done}
    for row in ROWS:
        text = json.dumps(row)
        if text in have or args.only not in text:
            continue
        start = time.perf_counter()
        found = {"row": row, **run(row)}
        with args.file.open("a") as file:
            file.write(json.dumps(found) + "\n")
        print(f"{time.perf_counter() - start:.0f} s  {text}", flush=True)


def run(row: tuple) -> dict:
    """`clipjax plan` in a process of its own."""
    model, topology, slices, batch, fsdp, (image, text), chunks = row
    settings = {
        "batch_size": batch,
        "grad_cache": chunks,
        "mesh.fsdp": fsdp,
        "losses.contrastive.layout": "ring",
        "model.image.remat": image,
        "model.text.remat": text,
    }
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "plan.json"
        command = [sys.executable, "-m", "clipjax.cli", "plan", f"--config={CONFIG}:{model}"]
        command += [f"--topology={topology}", f"--slices={slices}", f"--json={output}"]
        command += [f"--config.{k}={v}" for k, v in settings.items()]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | {"COLUMNS": "160"},
            capture_output=True,
            text=True,
            check=False,
        )
        if not output.exists():
            return {"error": done.stderr.strip().splitlines()[-1:] or ["?"]}
        return json.loads(output.read_text())


def table(done: list[dict]) -> str:
    """Markdown: GB and megabytes are of one device."""
    head = (
        *("model", "devices", "mesh", "batch", "grad_cache", "remat", "GB of capacity"),
        *("MB received", "of it for the losses", "between slices or hosts", "while computing"),
        *("TFLOP needed / program", "step, ms", "MFU", "compiled in, s"),
    )
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    order = {json.dumps(row): i for i, row in enumerate(ROWS)}
    known = [d for d in done if json.dumps(d["row"]) in order]
    for found in sorted(known, key=lambda d: order[json.dumps(d["row"])]):
        model, topology = found["row"][:2]
        if "error" in found:
            lines.append(f"{model} | {topology} | {found['error'][0][:120]}")
            continue
        memory, remark = found["memory"], "" if found["memory"]["fits"] else " (too large)"
        cells = [
            model,
            f"{found['topology']} ({found['devices']:,})",
            " ".join(f"{a}={n}" for a, n in found["mesh"].items()),
            f"{found['batch_size']:,}",
            str(found["grad_cache"]),
            found["remat"]["image"],
            f"{memory['total'] / 1e9:.2f} of {memory['capacity'] / 1e9:.1f}{remark}",
            *(costs(found) if "seconds" in found else [""] * 7),
            f"{found['compile_seconds']:.0f}",
        ]
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines)


def costs(found: dict) -> list[str]:
    """The cells of what is moved, computed and estimated."""
    moved, times, flops, losses = (found[k] for k in ("exchanges", "seconds", "flops", "losses"))
    every = sum(e["link"] + e["dcn"] for e in moved)
    hidden = sum((e["link"] + e["dcn"]) * e["hidden"] for e in moved)
    return [
        f"{every / 1e6:,.0f}",
        f"{(losses['link'] + losses['dcn']) / 1e6:,.0f}",
        f"{sum(e['dcn'] for e in moved) / 1e6:,.0f}",
        f"{hidden / max(every, 1):.0%}",
        f"{flops['needed'] / 1e12:.1f} / {flops['compiled'] / 1e12:.1f}",
        f"{times['best'] * 1e3:.0f} - {times['worst'] * 1e3:.0f}",
        f"{times['mfu'][0]:.0%} - {times['mfu'][1]:.0%}",
    ]


if __name__ == "__main__":
    main()
