"""Full-size parity: random networks of the true architectures, drawn by diffusers and by minisd, compared.

Each part runs in a process of its own, one after the other, so that SDXL in fp32 (13.9 GB) fits: diffusers makes the
networks, draws and writes the folder; minisd turns the folder into a single file; minisd draws from both. Exit 1
where a final latent is more than 1e-4 of its largest value off, or a pixel more than one level.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

LATENT = 1e-4  # of the largest value of diffusers' latent
SIDE = 256  # pixels: 32x32 latents
CALL = {"prompt": "a red circle", "negative_prompt": "blue"}
GUIDANCE = 5.0
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
PREDICTION = {"eps": "epsilon", "v": "v_prediction"}
SCHEDULERS = {
    "ddim": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}),
    "plms": ("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": False}),
    "euler": ("EulerDiscreteScheduler", {"timestep_spacing": "leading"}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {"timestep_spacing": "leading"}),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", default=["sd15", "sd21", "sdxl"], help="sd15, sd21, sdxl (default: all)")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--dir", type=Path, help="where the models are written (30 GB for sdxl), and removed again")
    parser.add_argument("--tiny", action="store_true", help="small networks: to try this script")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        PARTS[args.part](args.families[0], args)
        return 0
    faults = 0
    for family in args.families:
        with tempfile.TemporaryDirectory(dir=args.dir) as home:
            for part in PARTS:
                flags = [family, "--part", part, "--dir", home, "--steps", str(args.steps)]
                code = subprocess.call([sys.executable, __file__, *flags, *["--tiny"] * args.tiny])
                if code:
                    print(f"{family}: {part} ended with exit code {code}")
                    return 1
            report = json.loads((Path(home) / "report.json").read_text())
            faults += sum(not row["ok"] for row in report)
    return 1 if faults else 0


def theirs(family: str, args: argparse.Namespace) -> None:
    """diffusers: make the networks, draw with every scheduler, write folder and pictures."""
    import diffusers
    from oracles import TRUE
    from test_folders import pipeline

    config = TRUE[family]
    words = args.dir / "words"
    size = write_vocabulary(words, config.text[0].vocab_size)
    if args.tiny:
        from test_folders import configs

        config = configs(size)[{"sd15": "sd1", "sd21": "sd2-v", "sdxl": "sdxl"}[family]]
    start = time.perf_counter()
    pipe = pipeline(config, words)
    prediction = {"prediction_type": PREDICTION[config.noise.prediction]}
    side = SIDE if not args.tiny else 8 * config.vae.factor
    draw = torch.Generator().manual_seed(7)
    drawn = {"noise": torch.randn(1, 4, side // config.vae.factor, side // config.vae.factor, generator=draw)}
    for name, (kind, options) in SCHEDULERS.items():
        pipe.scheduler = getattr(diffusers, kind)(**BETAS, **options, **prediction)
        call = {"num_inference_steps": args.steps, "guidance_scale": GUIDANCE, "height": side, "width": side}
        z = pipe(**CALL, **call, latents=drawn["noise"], output_type="latent").images
        drawn[f"{name}.latent"] = z
        drawn[f"{name}.pixels"] = pipe.vae.decode(z / pipe.vae.config.scaling_factor).sample
    pipe.scheduler = diffusers.PNDMScheduler(**BETAS, **SCHEDULERS["plms"][1], **prediction)
    pipe.save_pretrained(args.dir / "folder")
    save_file(drawn, args.dir / "theirs.safetensors")
    told(family, "diffusers draws and writes", start)


def file(family: str, args: argparse.Namespace) -> None:
    """minisd: the folder as a single file."""
    from minisd.cli import main as command

    start = time.perf_counter()
    code = command(["convert", str(args.dir / "folder"), str(args.dir / "model.safetensors"), "--quiet"])
    if code:
        raise SystemExit(code)
    told(family, "minisd converts", start)


def ours(family: str, args: argparse.Namespace) -> None:
    """minisd draws from the folder and from the file; the table."""
    import minisd

    drawn, report, start = load_file(args.dir / "theirs.safetensors"), [], time.perf_counter()
    noise = drawn["noise"]
    for source in ("folder", "model.safetensors"):
        options = {"tokenizer": args.dir / "folder", "prediction": "v" if family == "sd21" else "eps"}
        model = minisd.load(args.dir / source, dtype="fp32", **(options if "." in source else {}))
        side = {"height": noise.shape[2] * model.config.vae.factor, "width": noise.shape[3] * model.config.vae.factor}
        for name in SCHEDULERS:
            if name == "plms" and model.config.noise.prediction == "v":
                continue  # diffusers' PNDM adds the v of several levels: see minisd.diffusion.samplers.plms
            call = {"steps": args.steps, "cfg_scale": GUIDANCE, "sampler": name, "schedule": "leading", **side}
            z = minisd.generate(model, **CALL, **call, latents=noise, output="latent", emphasis="off")
            pixels = model.vae.decode(z).float()
            latent = (z - drawn[f"{name}.latent"]).abs().max() / drawn[f"{name}.latent"].abs().max()
            levels = (as_bytes(pixels) - as_bytes(drawn[f"{name}.pixels"])).abs().max()
            ok = bool(latent <= LATENT and levels <= 1)
            report.append({"source": source, "sampler": name, "ok": ok})
            said = f"latent {latent.item():.1e} off, pixels {levels.item():.0f} levels"
            print(f"{family:5} {source:18} {name:9} {said}{'' if ok else '   WRONG'}", flush=True)
        del model
    (args.dir / "report.json").write_text(json.dumps(report))
    told(family, "minisd draws", start)


def as_bytes(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels in [-1, 1] as levels 0 to 255."""
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round()


def told(family: str, what: str, start: float) -> None:
    """Time and memory of this process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{family:5} {what}: {time.perf_counter() - start:.0f} s, {peak:.1f} GB at most", flush=True)


def write_vocabulary(folder: Path, size: int) -> int:
    """A tokenizer of CLIP's true size: its alphabet and, for want of the true merges, made-up ones."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    folder.mkdir()
    letters = list(bytes_to_unicode().values())
    tokens = letters + [letter + "</w>" for letter in letters]
    merges = [(a, b) for a in letters for b in tokens][: size - 2 - len(tokens)]
    tokens += [a + b for a, b in merges] + ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]) + "\n")
    return len(tokens)


PARTS = {"theirs": theirs, "file": file, "ours": ours}

if __name__ == "__main__":
    sys.exit(main())
