"""Where examples are made and tried: starting points on disk, and one example at a time drawn from each kind."""

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import onnx
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import engine
from engine.export import export
from tests.fuzz import bundles, graphs, photos, tasks
from tests.fuzz.models import EXTERNAL, MODELS, external_bytes
from tests.fuzz.worker import Outcome, Worker
from tests.tiny_cnn import HEIGHT, WIDTH, write_photo, write_tiny_cnn

_SEED = 20102
_BY_DESIGN = "memory BackendError"


@dataclass(frozen=True, slots=True)
class Example:
    """One mutated input.

    Attributes:
        what: What was done to which starting point.
        task: The function of `tasks` that meets it.
        args: Its arguments.
    """

    what: str
    task: Callable[..., str]
    args: tuple[object, ...]


class Stage:
    """Makes examples in a folder and tries them in a worker.

    Args:
        folder: An empty folder.
        worker: Where the engine runs.
    """

    def __init__(self, folder: Path, worker: Worker) -> None:
        self.worker = worker
        self._folder = folder
        model, preprocess, labels = write_tiny_cnn(folder)
        self._bundle = folder / "tiny.ada"
        export(model, self._bundle, preprocess=preprocess, labels=labels, activation="softmax")
        self._photo = write_photo(folder / "photo.png")
        self._image = np.random.default_rng(_SEED).standard_normal((1, 3, HEIGHT, WIDTH)).astype(np.float32)
        self._heatmap = engine.load(self._bundle, threads=1).explain(self._image).heatmap.tobytes()
        self._encodings = photos.encodings()
        self._models = {name: make(np.random.default_rng(_SEED)) for name, make in MODELS.items()}
        self._weights = external_bytes(np.random.default_rng(_SEED))
        self.kinds: dict[str, Callable[[Random], Example]] = {
            "manifest": self.manifest,
            "forgery": self.forgery,
            "no file": self.no_file,
            "graph": self.graph,
            "photo": self.photo,
            "picture": self.picture,
            "array": self.array,
            "path": self.path,
        }

    def manifest(self, random: Random) -> Example:
        """A bundle whose manifest was edited. What loads all the same must give the heatmap of before."""
        return self._damaged(random, bundles.edit_manifest, self._heatmap)

    def forgery(self, random: Random) -> Example:
        """A bundle whose files were edited and whose hashes are right."""
        return self._damaged(random, bundles.forge, None)

    def no_file(self, random: Random) -> Example:
        """A bundle with a folder, a link or a pipe in the place of a file."""
        return self._damaged(random, bundles.replace_file, self._heatmap)

    def graph(self, random: Random) -> Example:
        """An ONNX model with edits, to be exported; what can be exported must explain too."""
        name = random.choice(sorted(self._models))
        model = onnx.ModelProto()
        model.CopyFrom(self._models[name])
        data, edits = graphs.mutate(random, model)
        return self._exported(name, data, "; ".join(edits))

    def unedited(self, name: str) -> Example:
        """One of the models that `graph` starts from."""
        return self._exported(name, self._models[name].SerializeToString(), "no edit")

    def _exported(self, name: str, data: bytes, what: str) -> Example:
        scratch = self._scratch()
        (scratch / "model.onnx").write_bytes(data)
        (scratch / EXTERNAL).write_bytes(self._weights)
        activation = None if name == "batch_normalization" else "softmax"
        (scratch / "out").mkdir()
        return Example(
            f"{name}: {what}",
            tasks.export_and_explain,
            (scratch / "model.onnx", scratch / "out" / "model.ada", activation),
        )

    def photo(self, random: Random) -> Example:
        """A file that was a photo."""
        name = random.choice(sorted(self._encodings))
        data, edit = photos.edit_photo(random, self._encodings[name])
        file = self._scratch() / "photo"
        file.write_bytes(data)
        return self._explained(random, f"{name}: {edit}", file)

    def picture(self, random: Random) -> Example:
        """A PIL image of any mode and size."""
        picture = photos.draw_picture(random)
        return self._explained(random, f"{picture.mode} {picture.size} {picture.info}", picture)

    def array(self, random: Random) -> Example:
        """An array of any type, shape and values."""
        array = photos.draw_array(random)
        return self._explained(random, str(array), array)

    def path(self, random: Random) -> Example:
        """What is no photo, and may not even name one."""
        path = photos.draw_path(random, self._folder)
        return self._explained(random, repr(path)[:200], path)

    def attempt(self, example: Example) -> Outcome:
        """Try an example; what a refused export leaves behind is a finding too."""
        outcome = self.worker.run(example.task, *example.args)
        left = [entry.name for entry in self._scratch_out() if outcome.kind != "done"]
        if left and not outcome.is_finding:
            return Outcome(kind="left behind", message=", ".join(left), peak_bytes=outcome.peak_bytes)
        # A graph with right hashes is believed: it may ask for more memory than there is, and ONNX Runtime says so.
        if example.task is tasks.load_and_explain and str(outcome).startswith(_BY_DESIGN):
            return Outcome(kind="refused", error=outcome.error, message=outcome.message, peak_bytes=outcome.peak_bytes)
        return outcome

    def search(self, kind: str, examples: int) -> Counter[str]:
        """Try examples that hypothesis draws, always the same; return how many were done and how many refused.

        Raises:
            AssertionError: There was a finding; hypothesis makes the example as small as it can and prints it.
        """
        counts: Counter[str] = Counter()

        @settings(
            max_examples=examples,
            derandomize=True,
            database=None,
            deadline=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )
        @given(st.randoms(use_true_random=False))
        def each(random: Random) -> None:
            example = self.kinds[kind](random)
            outcome = self.attempt(example)
            assert not outcome.is_finding, f"{example.what}\n{outcome}"
            counts[outcome.kind] += 1

        each()
        return counts

    def _damaged(self, random: Random, edit: Callable[[Random, Path], list[str]], heatmap: bytes | None) -> Example:
        bundle = self._scratch() / "tiny.ada"
        shutil.copytree(self._bundle, bundle)
        done = edit(random, bundle)
        return Example("; ".join(done), tasks.load_and_explain, (bundle, self._image, self._photo, heatmap))

    def _explained(self, random: Random, what: str, image: object) -> Example:
        options = photos.draw_options(random) if random.random() < 0.3 else {}
        return Example(f"{what} {str(options)[:200]}", tasks.explain, (self._bundle, image, options))

    def _scratch(self) -> Path:
        scratch = self._folder / "scratch"
        if scratch.exists():
            shutil.rmtree(scratch)
        scratch.mkdir()
        return scratch

    def _scratch_out(self) -> list[Path]:
        out = self._folder / "scratch" / "out"
        return list(out.iterdir()) if out.is_dir() else []
