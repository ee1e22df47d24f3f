"""A trained bundle in Python: load it, ask it for landmarks, masks or registrations, of a case or of a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from torch import Tensor, nn

from medrl.bundles_folder import bundle_path
from medrl.data.planes import as_volume
from medrl.data.seeds import Seeds, make_seeds, seeds_of_case
from medrl.errors import input_error
from medrl.inference.prediction import CasePredictor
from medrl.inference.segmentation import Segmentation
from medrl.types import Detection, InputError, Landmark, Registration


class Bundle:
    """A bundle, ready on a device: the objects that its ``configs/inference.json`` describes.

    ``labels`` names the landmarks, if the bundle has some; an ``interactive`` bundle takes a user's clicks, a
    ``registering`` one pairs of images, and a ``detecting`` one pictures, too.  ``network``, ``inferer``,
    ``preprocessing`` are the parts that MONAI knows.
    """

    def __init__(self, root: Path, device: torch.device, overrides: dict[str, Any]) -> None:
        self.root, self.device, self._overrides = root, device, overrides
        parser = self._parser()
        self.network: nn.Module = _resolve(parser, "network")
        self.inferer = _resolve(parser, "inferer")
        self.preprocessing = _resolve(parser, "preprocessing")
        self.labels: list[str] = list(_resolve(parser, "anatomy").labels) if "anatomy" in parser else []
        arguments = parser.get("arguments") or ()
        self.detecting = "category" in parser
        self.interactive, self.registering = "seeds" in arguments, "moving" in arguments
        self.cutting = "given" in arguments

    def predict(
        self, image: Any, ras_from_voxel: Any = None, *, seeds: Any = None
    ) -> list[Landmark] | Segmentation | list[Detection]:
        """Find all landmarks of one volume, in the order of ``labels``, in RAS mm; or segment it; or detect objects.

        Args:
            image: path of an image file or DICOM folder, a MetaTensor, or an array (X, Y, Z) or (1, X, Y, Z); of a
                detecting bundle a picture, too: a path or an array (Y, X, C) of bytes.
            ras_from_voxel: (4, 4) mm; needed with a plain array, otherwise the image's own.
            seeds: a user's clicks, for interactive bundles: pairs (point in RAS mm, whether it is foreground),
                ``medrl.data.seeds.Seeds``, or the path of a Slicer Markups file.  Without it, those of
                ``<image>_seeds.mrk.json`` beside an image file, or none.

        Returns:
            the landmarks, or a ``medrl.inference.segmentation.Segmentation``: ``mask`` on the image's grid, ``seeds``,
            ``quality`` (estimated intersection over union); or the detections, best first, in pixels or RAS mm.

        Raises:
            InputError: an image that cannot be read, holds NaN or one value only, an array without a matrix, seeds
                that are not in the image, or a bundle that takes pairs of images.
        """
        if self.registering:
            raise InputError(f"{self.root.name} takes a fixed and a moving image; call register")
        if self.cutting:
            raise InputError(f"{self.root.name} takes folders of frames; call predict_folder")
        if seeds is not None and not self.interactive:
            raise InputError(f"{self.root.name} takes no seeds; leave them out, or load an interactive bundle")
        data: dict[str, Any] = {"image": image}
        if self.detecting and ras_from_voxel is None and not isinstance(image, MetaTensor):
            pass  # a picture
        elif not isinstance(image, str | Path):
            data["image"] = _as_image(image, ras_from_voxel)
        elif seeds is None and self.interactive:
            seeds = seeds_of_case(image)
        given = {"seeds": _as_seeds(seeds)} if self.interactive else {}
        return self._answer(data | given, "image", tuple(given))

    def register(
        self, fixed: Any, moving: Any, *, fixed_ras_from_voxel: Any = None, moving_ras_from_voxel: Any = None
    ) -> Registration:
        """Find where the points of a fixed volume lie in a moving one.

        Args:
            fixed: path of an image file or DICOM folder, a MetaTensor, or an array (X, Y, Z) or (1, X, Y, Z).
            moving: likewise.
            fixed_ras_from_voxel: (4, 4) mm; needed with a plain array, otherwise the image's own.
            moving_ras_from_voxel: likewise.

        Returns:
            a ``medrl.types.Registration``: ``moving_from_fixed`` (4, 4) in RAS mm, ``confidence``, ``status``.

        Raises:
            InputError: a bundle of another kind, or two images that `medrl.data.pairs.read_pair` refuses.
        """
        if not self.registering:
            raise InputError(f"{self.root.name} does not register images; call predict, or load a registration bundle")
        images = {"fixed": (fixed, fixed_ras_from_voxel), "moving": (moving, moving_ras_from_voxel)}
        data = {
            name: image if isinstance(image, str | Path) else _as_image(image, matrix)
            for name, (image, matrix) in images.items()
        }
        return self._answer(data, "fixed", ("moving",))

    def predict_folder(
        self, dataset_dir: Path | str, output_dir: Path | str, *, pictures: bool = False
    ) -> CasePredictor:
        """Do what ``python -m monai.bundle run --config_file inference.json`` does, and return the predictor.

        ``dataset_dir`` is a folder of images and DICOM series, or one image file; of a registering bundle a folder of
        cases with ``fixed.*`` and ``moving.*``.  Its ``report`` and ``landmarks`` hold what ``report.json`` and
        ``landmarks.csv`` say; a bad case is in ``failures`` and raises nothing.
        Raises InputError if there is no case.
        """
        parser = self._parser(dataset_dir=str(dataset_dir), output_dir=str(output_dir), pictures=pictures)
        parser["network"], parser["inferer"] = self.network, self.inferer
        predictor = _resolve(parser, "evaluator")
        predictor.run()
        return predictor

    def _answer(self, data: dict[str, Any], image_key: str, arguments: tuple[str, ...]) -> Any:
        """Prepare a case and ask the inferer; an InputError inside comes out bare."""
        try:
            data = self.preprocessing(data)
            given = {name: [data[name]] for name in arguments}
            return self.inferer(data[image_key][None], self.network, **given)[0]
        except Exception as error:
            wrong = input_error(error)
            if wrong is None:
                raise
            raise wrong from None

    def _parser(self, **overrides: Any) -> ConfigParser:
        parser = ConfigParser()
        parser.read_config(self.root / "configs" / "inference.json")
        parser.update({"bundle_root": str(self.root), "device": str(self.device)} | self._overrides | overrides)
        return parser


def load(bundle: str | Path, device: torch.device | str | None = None, *, ckpt_dir: Path | str | None = None) -> Bundle:
    """Load a bundle by its folder or by the name of one that comes with the package.

    ``device`` is CUDA where there is one, else the CPU; ``ckpt_dir`` a folder of other weights, such as those of a
    training of one's own.  Raises InputError for an unknown bundle, a device that is not there, unreadable weights.
    """
    root = Path(bundle) if (Path(bundle) / "configs" / "inference.json").is_file() else bundle_path(Path(bundle).name)
    overrides = {} if ckpt_dir is None else {"ckpt_dir": str(ckpt_dir)}
    return Bundle(root, choose_device(device), overrides)


def choose_device(device: torch.device | str | None = None) -> torch.device:
    """The device of a name, or the best at hand; InputError if this machine does not have it."""
    if device is None:
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen).cpu()
    except (RuntimeError, AssertionError, NotImplementedError):
        here = ", ".join(["cpu", *(f"cuda:{n}" for n in range(torch.cuda.device_count()))])
        raise InputError(f"device {device} is not available; expected one of {here}") from None
    return chosen


def load_weights(network: nn.Module, path: Path | str, device: torch.device | str | None = None) -> nn.Module:
    """Fill a network with a bare state dict and put it on a device, ready for inference; returns it.

    Raises InputError if the file is missing, unreadable or of another network, or the device is not there.
    """
    device, name = choose_device(device), Path(path).name
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{name} is missing; train the bundle first, or copy its models folder again") from None
    except Exception:
        raise InputError(f"{name}: cannot be read as weights; copy the bundle's models folder again") from None
    try:
        network.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError):
        raise InputError(f"{name}: weights of another network than agent.json and anatomy.pt tell of") from None
    return network.to(device).eval()


def read_settings(folder: Path | str, weights: str | None = None, *, file: str = "agent.json") -> dict[str, Any]:
    """Read ``file``, what a training needs to tell of its network and walk; InputError if it is not there.

    Where a folder holds several networks, the part that tells of ``<weights>.pt``; InputError if there is none.
    """
    try:
        settings = json.loads((Path(folder) / file).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{file} is missing: train the bundle first, or copy its models folder again") from None
    except (OSError, ValueError):
        raise InputError(f"{file}: cannot be read as JSON; copy the bundle's models folder again") from None
    if weights is not None and weights not in settings:
        raise InputError(f"weights {weights!r} are unknown; expected one of {', '.join(sorted(settings)) or 'none'}")
    return settings if weights is None else settings[weights]


def _resolve(parser: ConfigParser, name: str) -> Any:
    """An object of a configuration; an InputError inside comes out bare."""
    try:
        return parser.get_parsed_content(name)
    except Exception as error:
        wrong = input_error(error)
        if wrong is None:
            raise
        raise wrong from None


def _as_seeds(seeds: Any) -> Seeds | Path | str | None:
    if seeds is None or isinstance(seeds, Seeds | Path | str):
        return seeds
    try:
        return make_seeds([point for point, _ in seeds], [bool(kind) for _, kind in seeds])
    except (TypeError, ValueError):
        raise InputError("seeds: expected pairs of a point in RAS mm and whether it is foreground") from None


def _as_image(image: Any, ras_from_voxel: Any) -> MetaTensor:
    if ras_from_voxel is None:
        if not isinstance(image, MetaTensor):
            raise InputError("an array needs ras_from_voxel, the (4, 4) matrix in mm that a file would carry")
        ras_from_voxel = image.affine
    volume, matrix = as_volume(image, np.asarray(ras_from_voxel))
    volume = volume.float()
    if not bool(volume.isfinite().all()) or bool(volume.amin() == volume.amax()):
        raise InputError("the image holds NaN, infinite values, or one value only; expected an image")
    return MetaTensor(volume[None].as_subclass(Tensor), affine=matrix)
